"""Which configuration a name means: a file, what is live, the defaults, or a profile.

A file or profile that says only a few keys takes the rest from the live configuration, as a change of it would.
"""

from __future__ import annotations

import difflib
import os
from typing import Any

import msgspec

from gpulockd.daemon.configuration import load_layers
from gpulockd.errors import ConfigError
from gpulockd.settings import PROFILES, Tree, checked, flat, merged, settings_from

LIVE, DEFAULTS = "live", "defaults"
FILE_ENDINGS = (".yml", ".yaml", ".json")

ELSEWHERE = ("pool", "redis", "web", "notify", "alerts")
"""Blocks that say where a daemon is and whom it tells; a private one has its own."""


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration: its name, its whole tree, and the change of the live one that it is (None: none)."""

    name: str
    tree: Tree
    change: Tree | None = None


def choose(name: str, live: Tree | None) -> Chosen:
    """Return the configuration that `name` means.

    :param live: all settings in force; None if no daemon could say
    :raises ConfigError: if there is none of that name, or it cannot be used
    """
    if name == LIVE:
        if live is None:
            raise ConfigError("'live' is what the daemon goes by, and none is reachable; start it, or say 'defaults'")
        return Chosen(name=name, tree=whole({}, live))
    if name == DEFAULTS:
        return Chosen(name=name, tree=whole({}, None))
    if name in profiles(live):
        return of_change(name, {"gpu_lock": profiles(live)[name]}, live)
    if os.path.isfile(name):
        return of_change(name, load_layers(name, {}).file_tree, live)
    raise ConfigError(f"{name}: {_no_such(name, profiles(live))}")


def of_change(name: str, change: Tree, live: Tree | None) -> Chosen:
    """Return the configuration that a change of the live one would make; its rest is the live one, or the defaults.

    :raises ConfigError: if the change cannot be used
    """
    change = checked(change)
    return Chosen(name=name, tree=whole(change, live), change=change)


def whole(change: Tree, live: Tree | None) -> Tree:
    """Return every setting that a private daemon can have, with the change over the live ones or the defaults."""
    under = said({key: value for key, value in (live or {}).items() if key not in ELSEWHERE})
    settings = settings_from(merged(under, {key: value for key, value in change.items() if key not in ELSEWHERE}))
    return {key: value for key, value in said(msgspec.to_builtins(settings)).items() if key not in ELSEWHERE}


def said(tree: Any) -> Any:
    """Return the tree without what is None: that is not set."""
    if not isinstance(tree, dict):
        return tree
    return {name: said(value) for name, value in tree.items() if value is not None}


def changed(one: Chosen, other: Chosen) -> tuple[str, ...]:
    """Return the paths in which two configurations differ."""
    here, there = flat(one.tree), flat(other.tree)
    return tuple(path for path in sorted({*here, *there}) if here.get(path) != there.get(path))


def profiles(live: Tree | None) -> dict[str, Tree]:
    """Return the profiles by name: the built-in ones, and those of the live configuration."""
    built_in = {name: said(msgspec.to_builtins(block)) for name, block in PROFILES.items()}
    return merged(built_in, said((live or {}).get("profiles", {})))


def _no_such(name: str, known: dict[str, Tree]) -> str:
    if "/" in name or name.endswith(FILE_ENDINGS):
        return "no such configuration file"
    words = [LIVE, DEFAULTS, *known]
    near = difflib.get_close_matches(name, words, n=1)
    return f"did you mean {near[0]!r}?" if near else f"say a file, or one of {', '.join(words)}"
