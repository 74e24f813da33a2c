"""Settings as nested plain JSON, only what is set, and the same as a flat list of paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpulockd.settings.paths import fields_of, is_block, named_block, steps
from gpulockd.settings.whole import Settings

Tree = dict[str, Any]


def merged(*trees: Tree) -> Tree:
    """The later trees over the earlier ones, setting by setting; the trees themselves stay as they are."""
    whole: Tree = {}
    for tree in trees:
        for name, value in tree.items():
            below = whole.get(name)
            if isinstance(value, dict):
                value = merged(below, value) if isinstance(below, dict) else merged(value)
            whole[name] = value
    return whole


def flat(tree: Tree) -> dict[str, Any]:
    """Each setting of a tree by its path."""
    return dict(_flat(tree, Settings, ""))


def _flat(tree: Tree, kind: Any, above: str) -> Iterator[tuple[str, Any]]:
    inner = named_block(kind)
    known = fields_of(kind) if is_block(kind) else {}
    for name, value in tree.items():
        below = inner if inner is not None else known.get(name)
        descends = below is None or is_block(below) or named_block(below) is not None
        if isinstance(value, dict) and descends:
            yield from _flat(value, below, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def nested(settings: Mapping[str, Any]) -> Tree:
    """The tree of some settings by their paths; the paths need not be those of settings that there are."""
    tree: Tree = {}
    for path, value in settings.items():
        *blocks, last = steps(path) or ("",)
        node = tree
        for block in blocks:
            inner = node.get(block)
            if not isinstance(inner, dict):
                inner = node[block] = {}
            node = inner
        below = node.get(last)
        node[last] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return tree


def value_at(tree: Tree, path: str) -> Any:
    """What a tree says at a path; None if nothing."""
    node: Any = tree
    for step in steps(path):
        if not isinstance(node, dict):
            return None
        node = node.get(step)
    return node


def without(tree: Tree, *paths: str) -> Tree:
    """The tree without some settings or whole blocks; a block that is left empty goes too."""
    return nested(
        {
            path: value
            for path, value in flat(tree).items()
            if not any(path == gone or path.startswith(f"{gone}.") for gone in paths)
        }
    )
