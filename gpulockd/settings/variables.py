"""The environment's names of all settings: `GPU_LOCK_POLL_INTERVAL`, `GPULOCKD_SESSION_TTL`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from gpulockd.errors import ConfigError
from gpulockd.settings.checks import checked_value
from gpulockd.settings.paths import fields_of, is_block
from gpulockd.settings.values import from_text
from gpulockd.settings.whole import Settings


def variables() -> dict[str, tuple[str, Any]]:
    """For each environment variable that is a setting, the setting's path and kind; `tasks` and `profiles` are one."""
    return dict(_known())


def _found(block: Any, above: str) -> Iterable[tuple[str, tuple[str, Any]]]:
    for name, kind in fields_of(block).items():
        here = f"{above}{name}"
        if is_block(kind):
            yield from _found(kind, f"{here}.")
        else:
            yield variable_of(here), (here, kind)


def variable_of(path: str) -> str:
    """The name of a setting's variable."""
    prefix = "" if path.startswith("gpu_lock") else "GPULOCKD_"
    return prefix + path.replace(".", "_").upper()


@functools.cache
def _known() -> Mapping[str, tuple[str, Any]]:
    return dict(_found(Settings, ""))


def value_said(name: str, text: str) -> Any:
    """Return what a variable says, as its setting has it: durations in seconds.

    :raises ConfigError: naming the variable, if its setting does not take it
    """
    path, kind = _known()[name]
    try:
        return checked_value(from_text(text, kind, path), kind, path)
    except ConfigError as refused:
        raise ConfigError(f"{name}: {refused.message.removeprefix(f'{path}: ')}", path=path) from None
