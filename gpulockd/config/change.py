"""What a change of the configuration is, leaf by leaf, and how one is undone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from gpulockd.config.live import ALL, Live, Tree, live_for, pinned, scoped, tidy
from gpulockd.errors import ConfigError
from gpulockd.ledger.revisions import Change, Revision
from gpulockd.settings import Settings, flat, merged, needs_restart, nested

FILE_ONLY = frozenset({"config.restart"})
"""What runs as the daemon's user is said by who may write its file or its environment, never over HTTP."""

SECRET_BLOCKS = frozenset({"notify", "redis"})
"""Blocks whose values may hold passwords; logs and events only say that they changed."""

STAYS = frozenset({"notify", "alerts", "config", "rollout"})
"""Blocks that a rollback leaves as they are, unless all is wanted: who is told must not end with what they are told of.
"""

OF_ATTEMPTS = frozenset({"gpu_lock", "gpu_lock_monitor", "tasks", "queue", "session", "settle", "gpus"})
"""Blocks by which attempts can fail: an automatic rollback touches no other."""

UNTRIED = frozenset({"config", "notify", "alerts", "rollout", "web", "profiles"})
"""Blocks that no trial can say anything about."""

JUDGES = frozenset({"rollout", "config", "alerts"})
"""Blocks that say how a candidate is judged and who must agree: none brings its own."""

MOST_SPOKEN, LONGEST_SPOKEN = 12, 60
"""So many changes, and so many characters of a value, are said to people."""

_GENERAL = {
    "max_wait_time": "gpu_lock.max_wait_time",
    "lock_timeout": "gpu_lock.lock_timeout",
    "poll_interval": "gpu_lock.poll_interval",
    "warning": "gpu_lock_monitor.timeout_levels.warning",
    "soft_timeout": "gpu_lock_monitor.timeout_levels.soft_timeout",
    "hard_timeout": "gpu_lock_monitor.timeout_levels.hard_timeout",
}
"""What holds for a task of which the configuration says nothing."""


def refuse_restarts(paths: Collection[str]) -> None:
    """:raises ConfigError: if a leaf cannot be changed while the daemon runs"""
    for path in sorted(paths):
        if path in FILE_ONLY:
            raise ConfigError(f"{path}: it runs a command as the daemon's user; set it in config.yml", path=path)
        if needs_restart(path):
            raise ConfigError(f"{path}: it needs a restart; set it in config.yml and restart the daemon", path=path)


def refuse_own_judges(live: Live, candidate: Live) -> None:
    """:raises ConfigError: if a candidate of a rollout differs in what it is judged by"""
    for change in live_diff(live, candidate):
        if block_of(change.path) in JUDGES:
            cure = "leave it out, and set it by itself (`gpulockd config set`)"
            raise ConfigError(f"{change.path}: a rollout's candidate is judged by this; {cure}", path=change.path)


def values_of(settings: Settings) -> dict[str, Any]:
    """Return every leaf of the settings that has a value, by path, as JSON has it."""
    return {path: value for path, value in flat(plain(settings)).items() if value is not None}


def plain(value: Any) -> Any:
    """Return a value as it comes back from the store: lists for tuples."""
    return msgspec.json.decode(msgspec.json.encode(value))


def lasting(base: Tree) -> Tree:
    """Return what of a file's tree a revision can be about: without what only a restart changes (and passwords)."""
    tree: Tree = plain(nested({path: value for path, value in flat(base).items() if not needs_restart(path)}))
    return tree


def spoken(changes: Collection[Change]) -> str:
    """Return changes as one line for people; what may be a secret is not said, and a long value is cut."""
    said = [_spoken(change) for change in changes]
    more = f"; and {len(said) - MOST_SPOKEN} more" if len(said) > MOST_SPOKEN else ""
    return "; ".join(said[:MOST_SPOKEN]) + more if said else "nothing that differs here"


def _spoken(change: Change) -> str:
    if block_of(change.path) in SECRET_BLOCKS:
        return f"{change.path} changed"
    return f"{change.path}: {shown_value(change.before)} -> {shown_value(change.after)}"


def shown_value(value: Any) -> str:
    """Return a value as people read it, cut where it is long."""
    if value is None:
        return "not set"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST_SPOKEN else f"{text[: LONGEST_SPOKEN - 3]}..."


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """Return what differs between two sets of leaves; None is a leaf that is not set."""
    return tuple(
        Change(path=path, before=before.get(path), after=after.get(path))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    )


def what_says_otherwise(before: Tree, after: Tree) -> frozenset[str]:
    """Return the leaves that the second of two trees sets, and not as the first does."""
    then = flat(before)
    return frozenset(path for path, value in flat(after).items() if then.get(path) != value)


def live_diff(before: Live, after: Live) -> tuple[Change, ...]:
    """Return what differs between two live documents; leaves of single pools are named "pools.<pool>.<path>"."""
    return diff(_live_leaves(before), _live_leaves(after))


def _live_leaves(live: Live) -> dict[str, Any]:
    leaves = dict(flat(live.get("all", {})))
    for pool, tree in live.get("pools", {}).items():
        leaves |= {f"pools.{pool}.{path}": value for path, value in flat(tree).items()}
    return leaves


def block_of(path: str) -> str:
    """Return the block that a leaf is in; also of one named "pools.<pool>.<path>"."""
    first, _, rest = path.partition(".")
    if first != "pools":
        return first
    known = STAYS | OF_ATTEMPTS | UNTRIED | SECRET_BLOCKS | {"pool"}
    return next((word for word in rest.split(".")[1:] if word in known), first)


def needs_trial(before: Live, after: Live) -> bool:
    """Whether the difference is one that a trial could say something about."""
    return any(block_of(change.path) not in UNTRIED for change in live_diff(before, after))


def sparing(now: Live, back: Live, stays: Callable[[str], bool]) -> Live:
    """Return a document to go back to in which some blocks are as they are now.

    :param stays: whether a block is to stay, by its name
    """
    pools = sorted({*now.get("pools", {}), *back.get("pools", {})})
    made = {scope: _mixed(scoped(now, scope), scoped(back, scope), stays) for scope in (ALL, *pools)}
    pins = {
        pool: sorted(
            [pin for pin in now.get("pins", {}).get(pool, []) if stays(block_of(pin))]
            + [pin for pin in back.get("pins", {}).get(pool, []) if not stays(block_of(pin))]
        )
        for pool in {*now.get("pins", {}), *back.get("pins", {})}
    }
    return tidy({"all": made.pop(ALL), "pools": made, "pins": pins})


def _mixed(now: Tree, back: Tree, stays: Callable[[str], bool]) -> Tree:
    leaves = {path: value for path, value in flat(back).items() if not stays(block_of(path))}
    return nested(leaves | {path: value for path, value in flat(now).items() if stays(block_of(path))})


def base_as_of(bases: Mapping[int, Tree], number: int) -> Tree | None:
    """Return what file and environment of a pool said as of a revision; the first known where none is as old."""
    numbers = sorted(bases)
    if not numbers:
        return None
    older = [one for one in numbers if one <= number]
    return bases[older[-1] if older else numbers[0]]


def restored(live_then: Live, number: int, bases: Mapping[str, Mapping[int, Tree]], now: int) -> Live:
    """Return the live document under which every pool goes by what it went by as of a revision.

    Files are not written. Where one has changed since, the pool's live document pins what was in force.

    :param bases: what file and environment of each pool said, by revision
    :param now: the revision in force
    """
    live = live_then
    for pool, of_pool in sorted(bases.items()):
        then, present = base_as_of(of_pool, number), base_as_of(of_pool, now)
        if then is None or present is None:
            continue
        own = live_for(live_then, pool)
        want, have = flat(merged(then, own)), flat(merged(present, own))
        pins = {
            path: value
            for path in {*want, *have}
            if want.get(path) != have.get(path)
            and not (needs_restart(path) or path in FILE_ONLY)
            and (value := want[path] if path in want else _unset_value(path, want)) is not None
        }
        live = pinned(live, pool, pins)
    return live


_DEFAULTS = values_of(Settings())


def _unset_value(path: str, leaves: Mapping[str, Any]) -> Any:
    """Return what holds where a leaf is not set; None if nothing can say that."""
    block, _, key = path.rpartition(".")
    if block.startswith("tasks."):
        path = _GENERAL.get(key, path)
        return leaves.get(path, _DEFAULTS.get(path))
    return _DEFAULTS.get(path)


def previous_stable(current: Revision, known: Collection[Revision]) -> int | None:
    """Return the stable revision to go back to from the current one; None: it is in force.

    From a revision that has become stable it is the stable one before. Who asks twice, not sure whether the first time
    has worked, does not go back twice: from a rollback that is stable there is nothing to restore.
    """
    if current.stable and current.of is not None:
        return None
    return max((one.number for one in known if one.stable and one.number < current.number), default=None)
