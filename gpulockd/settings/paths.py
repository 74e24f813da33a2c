"""The paths of all settings, such as `gpu_lock.poll_interval`, and the kind that stands at each.

`tasks` and `profiles` have keys that users name, dots included: `tasks.shop.render.max_wait_time` is the
`max_wait_time` of the task `shop.render`, for what is under such a name has no blocks of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec

from gpulockd.settings.whole import Settings

NEEDS_RESTART = frozenset({"redis", "web.listen", "web.tls", "pool", "gpus.simulate", "gpus.guard"})
"""Settings and blocks that a running daemon cannot change."""


def needs_restart(path: str) -> bool:
    """Whether a daemon must be started again before a change of this setting counts."""
    return path in NEEDS_RESTART or any(path.startswith(f"{other}.") for other in NEEDS_RESTART)


def is_block(kind: Any) -> bool:
    """Whether settings stand under a value of this kind."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def named_block(kind: Any) -> Any:
    """The block that each name of such a kind has, for `tasks` and `profiles`; else None."""
    parts = get_args(kind) if get_origin(kind) is dict else ()
    return parts[1] if len(parts) == 2 and is_block(parts[1]) else None


def fields_of(block: Any) -> dict[str, Any]:
    """The kind of each setting of a block."""
    known = _fields.get(block)
    if known is None:
        known = _fields[block] = {field.encode_name: field.type for field in msgspec.structs.fields(block)}
    return known


_fields: dict[Any, dict[str, Any]] = {}


def leaves() -> dict[str, Any]:
    """Every settable path with its kind; `*` stands where users name something: `tasks.*.max_wait_time`."""
    return dict(_leaves(Settings, ""))


def _leaves(block: Any, above: str) -> Iterator[tuple[str, Any]]:
    for name, kind in fields_of(block).items():
        here = f"{above}{name}"
        inner = named_block(kind)
        if inner is not None:
            yield from _leaves(inner, f"{here}.*.")
        elif is_block(kind):
            yield from _leaves(kind, f"{here}.")
        else:
            yield here, kind


def steps(path: str) -> tuple[str, ...]:
    """The keys that lead to a path, each name of a user's in one piece."""
    kind: Any = Settings
    rest, found = path, []
    while rest:
        inner = named_block(kind)
        if inner is not None:
            name, dot, last = rest.rpartition(".")
            found += [name, last] if dot else [last]
            break
        name, _, rest = rest.partition(".")
        found.append(name)
        kind = fields_of(kind).get(name) if is_block(kind) else None
    return tuple(found)
