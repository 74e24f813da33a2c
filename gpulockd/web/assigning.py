"""What a change wishes, as one tree of settings: blocks, dotted names, values as text, a profile."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gpulockd.config.change import FILE_ONLY, values_of
from gpulockd.errors import ConfigError
from gpulockd.settings import Settings, Tree, checked, flat, leaves, merged, needs_restart, nested, without
from gpulockd.settings.alerting import check_addresses
from gpulockd.settings.paths import steps
from gpulockd.settings.values import from_text
from gpulockd.web.config_views import ConfigChange
from gpulockd.web.problems import refusal
from gpulockd.web.secrets import HIDDEN, shows_hidden

LONGEST_PATH = 300
DEEPEST = 10
NOTHING = ("null", "~", "")

_KNOWN = tuple((path.split("."), kind) for path, kind in leaves().items())


class Wanted(msgspec.Struct, frozen=True):
    """What a change sets, checked, and the names that it takes back."""

    tree: Tree
    unset: tuple[str, ...]


def wanted(change: ConfigChange, settings: Settings, commanded: Collection[str] = ()) -> Wanted:
    """Return what a change wishes: its profile, over that `set`, over that `assign`. A null is taken back.

    :param commanded: settings that the daemon's command line says: a whole file has their defaults
    :raises ProblemError: 422 if it says nothing
    :raises ConfigError: for what no setting takes
    """
    assigned = {name: _value(name, text) for name, text in change.assign.items()}
    said = [document(change.set), document(assigned)]
    if change.profile is not None:
        said.insert(0, Wanted(profile_tree(change.profile, settings), ()))
    for name in change.unset:
        _check_known(name)
    unset = (*change.unset, *(name for one in said for name in one.unset))
    tree = live_part(merged(*(one.tree for one in said)), settings, commanded)
    if not tree and not unset and not change.replace:
        raise refusal(422, "invalid", "the change says nothing", 'send "set", "assign", "unset" or "profile"')
    return Wanted(tree, unset)


def live_part(tree: Tree, settings: Settings, commanded: Collection[str] = ()) -> Tree:
    """Return the tree without what no live change may say, where it says what is so anyway: whole files do."""
    now, usual = values_of(settings), values_of(Settings())
    same = [
        path
        for path, value in flat(tree).items()
        if (needs_restart(path) or path in FILE_ONLY)
        and (now.get(path) == value or (path in commanded and usual.get(path) == value))
    ]
    return without(tree, *same)


def document(said: Mapping[str, Any]) -> Wanted:
    """Return blocks and dotted names as one checked tree, and the names whose value is null.

    :raises ProblemError: 422 for the place of a secret that was not written again
    :raises ConfigError: for what no setting takes
    """
    for name in said:
        if len(name) > LONGEST_PATH:
            raise ConfigError(f"{name[:80]}…: no setting has so long a name")
    _check_depth(said)
    _check_once(said)
    tree = nested(said)
    found = checked(tree)
    check_addresses(found)
    path = shows_hidden(tree)
    if path is not None:
        hint = "leave it out to keep the secret, or write the secret itself"
        raise refusal(422, "invalid", f"{path}: {HIDDEN} stands for a secret that is not shown", hint)
    nulls = tuple(_nulls(tree, ""))
    for name in nulls:
        _check_known(name)
    return Wanted(found, nulls)


def _check_depth(said: Mapping[str, Any]) -> None:
    """:raises ConfigError: for what is nested so deeply that only looking at it would take long"""
    level: list[Any] = [said]
    for _ in range(DEEPEST):
        inner = [value for node in level for value in (node.values() if isinstance(node, Mapping) else node)]
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise ConfigError("no setting is nested so deeply")


def _check_once(said: Mapping[str, Any]) -> None:
    """:raises ConfigError: for a setting that is said twice, by its dotted name and within a block"""
    told: set[tuple[str, ...]] = set()
    around: set[tuple[str, ...]] = set()
    for name, value in said.items():
        for path in flat(nested({name: value})):
            here = steps(path)
            outer = {here[:depth] for depth in range(1, len(here))}
            if here in told or here in around or outer & told:
                raise ConfigError(f"{path}: it is said twice; say it once", path=path)
            told.add(here)
            around |= outer


def profile_tree(name: str, settings: Settings) -> Tree:
    """Return what a profile of the configuration sets.

    :raises ConfigError: if there is none of that name
    """
    profile = settings.profiles.get(name)
    if profile is None:
        near = difflib.get_close_matches(name, settings.profiles, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(settings.profiles))}"
        raise ConfigError(f"profiles: unknown profile {name[:80]!r}; {hint}")
    said = {key: value for key, value in msgspec.to_builtins(profile).items() if value is not None}
    return {"gpu_lock": said}


def _value(path: str, text: str) -> Any:
    """The text of a command line as what a file would say at that path."""
    words = steps(path[:LONGEST_PATH])
    kind = next((kind for parts, kind in _KNOWN if len(parts) == len(words) and _fits(parts, words)), str)
    return None if text in NOTHING else from_text(text, kind, path)


def _fits(parts: Sequence[str], words: Sequence[str]) -> bool:
    """Whether words begin as the parts of a known setting do; `*` is a name of a user's."""
    return all(part in ("*", word) for part, word in zip(parts, words, strict=False))


def _is_around(parts: Sequence[str], words: Sequence[str]) -> bool:
    """Whether words name that setting or a block around it. A user's name may have dots, so all below `*` is one."""
    if "*" in parts:
        return _fits(parts[: parts.index("*")], words)
    return len(words) <= len(parts) and _fits(parts, words)


def _check_known(path: str) -> None:
    """:raises ConfigError: unless a setting or a block has that name"""
    words = steps(path[:LONGEST_PATH])
    if words and any(_is_around(parts, words) for parts, _ in _KNOWN):
        return
    near = difflib.get_close_matches(path[:LONGEST_PATH], [".".join(parts) for parts, _ in _KNOWN], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{path[:LONGEST_PATH]}: no setting or block has this name{hint}", path=path)


def _nulls(tree: Any, above: str) -> Iterator[str]:
    for name, value in tree.items():
        if value is None:
            yield f"{above}{name}"
        elif isinstance(value, dict):
            yield from _nulls(value, f"{above}{name}.")
