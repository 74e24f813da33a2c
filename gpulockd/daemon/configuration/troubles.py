"""All that is wrong in a configuration file, for whoever corrects it: one error does not hide the next."""

from __future__ import annotations

from typing import Any

from gpulockd.alerting.rules import rules_of
from gpulockd.daemon.configuration.file import Positions, place, plain
from gpulockd.errors import ConfigError
from gpulockd.settings import Tree, checked, fitted
from gpulockd.settings.alerting import check_addresses

MOST = 20
"""So many are said at once."""


def troubles(content: bytes, path: str) -> tuple[ConfigError, ...]:
    """Return what is wrong in the content of a file, each with its line and column; none if it can be used.

    :param path: how the messages call the file
    """
    try:
        tree, positions = plain(content, path)
    except ConfigError as unreadable:
        return (unreadable,)
    found: list[ConfigError] = []
    while len(found) < MOST:
        wrong = _first(tree)
        if wrong is None:
            break
        found.append(_placed(wrong, path, positions))
        if not wrong.path or not _cut(tree, wrong.path):
            break
    return tuple(found)


def _first(tree: Tree) -> ConfigError | None:
    try:
        good = checked(tree)
        rules_of(fitted(good).alerts)
        check_addresses(good)
    except ConfigError as wrong:
        return wrong
    return None


def _placed(wrong: ConfigError, path: str, positions: Positions) -> ConfigError:
    return ConfigError(f"{place(path, positions, wrong.path)}: {wrong.message}", path=wrong.path)


def _cut(tree: Tree, path: str) -> bool:
    """Take out of the tree what is wrong, so that what else is wrong is seen; False if nothing stands there."""
    node: Any = tree
    left = path.partition("[")[0]
    while isinstance(node, dict):
        if left in node:
            del node[left]
            return True
        name = next((one for one in node if left.startswith(f"{one}.")), None)
        if name is None:
            return False
        node, left = node[name], left[len(name) + 1 :]
    return False
