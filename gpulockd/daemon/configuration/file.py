"""config.yml as plain values, with line and column of each. Whatever the file is, it gives that or a ConfigError."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Mapping
from io import StringIO
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from gpulockd.errors import ConfigError
from gpulockd.settings import Tree, checked, leaves

LARGEST_BYTES = 256 * 1024
"""A configuration is some pages; the parser needs seconds for much more."""

DEEPEST = 20
MOST_OPEN_BRACKETS = 100
"""More than this, and the parser needs seconds before it says so."""

MOST_VALUES = 20_000
"""How many values a file may have once its aliases are written out, which may be many more than stand there."""

Positions = dict[str, tuple[int, int]]
"""Line and column, from 1, of what stands at each path."""


_BRACKET = re.compile(rb"[\[\]{}]")
_QUOTED = re.compile(r"""(['"])(.*?)(?:\1|$)""", re.DOTALL)
_MAY_BE_QUOTED = re.compile(r".|\\.|\\[xuU][0-9a-f]+|<[a-z ]+>", re.DOTALL)
"""One character, as it is or escaped, or what the parser calls a part of YAML."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration file as it was read: what it sets, checked, and where each setting stands."""

    path: str
    tree: Tree
    positions: Positions
    is_empty: bool = False


def find(file: str | None, env: Mapping[str, str]) -> str | None:
    """Return the path of the file that counts: the named one, else the first of the usual places that exists.

    :raises ConfigError: if the named one does not exist
    """
    named = file or env.get("GPULOCKD_CONFIG")
    if named:
        if not _is_file(named):
            raise ConfigError(f"{named}: no such configuration file")
        return named
    home = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".config")
    usual = ("config.yml", os.path.join(home, "gpulockd/config.yml"), "/etc/gpulockd/config.yml")
    return next((path for path in usual if _is_file(path)), None)


def _is_file(path: str) -> bool:
    return "\0" not in path and os.path.isfile(path)


def read(path: str) -> File:
    """Return what the file says.

    :raises ConfigError: naming file, line and column of what is wrong
    """
    try:
        with open(path, "rb") as opened:
            content = opened.read(LARGEST_BYTES + 1)
    except OSError as refused:
        raise ConfigError(f"{path}: cannot be read: {refused.strerror}") from None
    if len(content) > LARGEST_BYTES:
        raise ConfigError(f"{path}: it is larger than {LARGEST_BYTES // 1024} KiB, which no configuration is")
    return parsed(content, path)


def parsed(content: bytes, path: str) -> File:
    """Return what the content of a file says.

    :param path: how the error message calls the file
    :raises ConfigError: naming file, line and column of what is wrong
    """
    tree, positions = plain(content, path)
    try:
        return File(path=path, tree=checked(tree), positions=positions, is_empty=not content.strip())
    except ConfigError as wrong:
        raise ConfigError(
            f"{place(path, positions, wrong.path)}: {wrong.message}", path=wrong.path, involved=wrong.involved
        ) from None


def plain(content: bytes, path: str) -> tuple[Tree, Positions]:
    """Return the content of a file as plain values that nobody has checked, and where each stands.

    :raises ConfigError: if it is no YAML, or no blocks
    """
    positions: Positions = {}
    document = _document(content, path)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        kind = "a list" if isinstance(document, list) else "one value"
        raise ConfigError(f"{path}:1:1: a configuration is blocks such as 'gpu_lock:', not {kind}")
    try:
        tree: Tree = _Plain(positions).of(document, "", 0)
        return tree, positions
    except ConfigError as wrong:
        where = place(path, positions, wrong.path)
        raise ConfigError(f"{where}: {wrong.message}", path=wrong.path, involved=wrong.involved) from None


def place(file: str, positions: Positions, path: str) -> str:
    """Return "file:line:column" of a path, or of the nearest block around it."""
    while path and path not in positions:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    line, column = positions.get(path, (1, 1))
    return f"{file}:{line}:{column}"


def _document(content: bytes, path: str) -> Any:
    """The file's tree, which knows the line and column of each key."""
    if _open_brackets(content) > MOST_OPEN_BRACKETS:
        raise ConfigError(f"{path}: it is nested too deeply")
    try:
        yaml = YAML(typ="rt")
        yaml.composer.warn_double_anchors = False  # the warning would quote the file
        return yaml.load(StringIO(content.decode("utf-8-sig")))
    except MarkedYAMLError as wrong:
        mark = wrong.problem_mark or wrong.context_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else path
        raise ConfigError(f"{where}: {unquoted(wrong.problem or wrong.context or '') or 'not YAML'}") from None
    except UnicodeDecodeError as wrong:
        raise ConfigError(f"{path}: not YAML: it is not UTF-8 at byte {wrong.start}; save it as UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{path}: it is nested too deeply") from None
    except Exception as wrong:  # noqa: BLE001  # whatever the parser stumbles over, it is the text that is odd
        said = unquoted(" ".join(str(wrong).split())[:200]) or type(wrong).__name__
        raise ConfigError(f"{path}: not YAML: {said}") from None


def unquoted(said: str) -> str:
    """Return what the parser says, up to where it quotes the file: names of settings are shown, all else may be a
    secret."""
    for quoted in _QUOTED.finditer(said):
        if not _MAY_BE_QUOTED.fullmatch(quoted[2]) and quoted[2] not in _names():
            return said[: quoted.start()].removesuffix(" with value ").rstrip(" :(")
    return said


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(part for path in leaves() for part in path.split("."))


def _open_brackets(content: bytes) -> int:
    """How many brackets are open at most, wherever they stand."""
    found = _BRACKET.findall(content)
    return max(itertools.accumulate((1 if bracket in b"[{" else -1 for bracket in found), initial=0))


class _Plain:
    """Turns the parser's nodes into plain values, and notes where each stands."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._left = MOST_VALUES

    def of(self, node: Any, path: str, depth: int) -> Any:
        """:raises ConfigError: if there are too many values, or they are nested too deeply"""
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise ConfigError("there are too many values, or they are nested too deeply", path=path)
        if isinstance(node, dict):
            return {self._key(name): self._entry(node, name, path, depth) for name in node}
        if isinstance(node, list):
            return [self._item(node, at, path, depth) for at in range(len(node))]
        if isinstance(node, bool | ScalarBoolean):
            return bool(node)
        for kind in (int, float, str):
            if isinstance(node, kind):
                return kind(node)
        return node

    def _key(self, name: Any) -> str:
        return name if type(name) is str else str(name)[:200]

    def _entry(self, node: Any, name: Any, path: str, depth: int) -> Any:
        key = self._key(name)
        here = f"{path}.{key}" if path else key
        spot = (node.lc.data or {}).get(name) or (node.lc.line, node.lc.col)  # a merged key stands elsewhere
        self._note(here, spot)
        return self.of(node[name], here, depth + 1)

    def _item(self, node: Any, at: int, path: str, depth: int) -> Any:
        here = f"{path}[{at}]"
        self._note(here, (node.lc.data or {}).get(at) or (node.lc.line, node.lc.col))
        return self.of(node[at], here, depth + 1)

    def _note(self, path: str, spot: Any) -> None:
        if spot[0] is not None:
            self._positions[path] = (spot[0] + 1, spot[1] + 1)
