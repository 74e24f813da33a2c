"""What the environment sets."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import structlog

from gpulockd.settings import Tree, merged, nested
from gpulockd.settings.names import meant
from gpulockd.settings.variables import value_said, variables

_log = structlog.get_logger(__name__)


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment sets, checked, and the variable of each path that it sets."""

    tree: Tree
    variables: dict[str, str]


def read(env: Mapping[str, str]) -> Environment:
    """Return what the variables say; an empty one says nothing.

    :raises ConfigError: naming the variable of a value that its setting does not take
    """
    known = variables()
    tree: Tree = {}
    used = {}
    for name, text in env.items():
        if name not in known:
            _warn_of_typo(name, known)
        elif text:
            path = known[name][0]
            tree = merged(tree, nested({path: value_said(name, text)}))
            used[path] = name
    return Environment(tree=tree, variables=used)


def _warn_of_typo(name: str, known: Mapping[str, object]) -> None:
    """Say when a variable looks like a setting but is none; other software may own it, so it is no error."""
    if not name.startswith(("GPU_LOCK_", "GPULOCKD_")):
        return
    near = meant(name, known, most=2)
    if near or name.startswith("GPU_LOCK_"):
        printable = name.encode("ascii", "backslashreplace").decode()
        hint = f"; did you mean {near}?" if near else ""
        _log.warning("configuration.variable_unknown", variable=printable, message=f"{printable} is no setting{hint}")
