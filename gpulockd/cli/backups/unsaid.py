"""Secrets that a backup does not say: what is marked in their place, and how they come back from what is set now."""

from __future__ import annotations

from typing import Any

from gpulockd.web.secrets import hidden

Way = list[str]
"""The names on the way to a value; a path in one text could not tell a name that has a dot."""


def unsaid(tree: dict[str, Any]) -> tuple[dict[str, Any], list[Way]]:
    """Return the tree with marks for its secrets, and where they are."""
    marked = {name: hidden(name if name not in ("all", "pools") else "", value) for name, value in tree.items()}
    return marked, _differing(tree, marked, [])


def filled(tree: dict[str, Any], ways: list[Way], known: dict[str, Any]) -> tuple[dict[str, Any], list[Way]]:
    """Return the tree with what `known` has in the place of the marks, and the marks for which it has nothing.

    Those are taken out, so that no mark ever comes into force.
    """
    missing = []
    made = _copy(tree)
    for way in ways:
        value = _at(known, way)
        if value is None:
            missing.append(way)
            _take_out(made, way)
        else:
            _put(made, way, value)
    return made, missing


def leads_to_marks(tree: dict[str, Any], ways: list[Way]) -> bool:
    """Whether each way ends at a value of its own in the tree, as `unsaid` tells them."""
    if len({tuple(way) for way in ways}) != len(ways):
        return False
    return all(way and _at(tree, way) is not None and not isinstance(_at(tree, way), dict) for way in ways)


def _differing(said: Any, marked: Any, way: Way) -> list[Way]:
    if isinstance(said, dict) and isinstance(marked, dict):
        return [found for name in said for found in _differing(said[name], marked.get(name), [*way, name])]
    same = list(said) == list(marked) if isinstance(said, list | tuple) else said == marked
    return [] if same else [way]


def _copy(value: Any) -> Any:
    return {name: _copy(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def _at(tree: Any, way: Way) -> Any:
    for name in way:
        if not isinstance(tree, dict):
            return None
        tree = tree.get(name)
    return tree


def _put(tree: dict[str, Any], way: Way, value: Any) -> None:
    for name in way[:-1]:
        tree = tree[name]
    tree[way[-1]] = value


def _take_out(tree: dict[str, Any], way: Way) -> None:
    blocks = [tree]
    for name in way[:-1]:
        blocks.append(blocks[-1][name])
    del blocks[-1][way[-1]]
    for block, name in zip(reversed(blocks[:-1]), reversed(way[:-1]), strict=True):
        if not block[name]:
            del block[name]
