"""The live document: what is set in force besides files and environments, for all pools and for single ones.

`{"all": tree, "pools": {pool: tree}, "pins": {pool: [paths]}}`. A pin is a leaf of a pool that a rollback put there to
undo a change of that pool's file; a later change of the file at that leaf lifts it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from gpulockd.settings import flat, merged, nested, without

Tree = dict[str, Any]
Live = dict[str, Any]

ALL = "all"


def live_for(live: Live, pool: str) -> Tree:
    """Return what the document sets in one pool."""
    return merged(live.get("all", {}), live.get("pools", {}).get(pool, {}))


def scoped(live: Live, scope: str) -> Tree:
    """Return what the document sets in a scope: "all", or a pool."""
    tree: Tree = live.get("all", {}) if scope == ALL else live.get("pools", {}).get(scope, {})
    return tree


def with_scope(live: Live, scope: str, tree: Tree) -> Live:
    """Return the document with another tree for a scope."""
    if scope == ALL:
        return tidy({**live, "all": tree})
    return tidy({**live, "pools": {**live.get("pools", {}), scope: tree}})


def changed(live: Live, tree: Tree, *, scope: str, unset: Collection[str] = (), replace: bool = False) -> Live:
    """Return the document after a change.

    A leaf set for a scope is somebody's wish from now on, so it is no pin any more; one set for all pools is wished
    everywhere, so a pin of a pool gives way to it. What was set for a pool on purpose stays.

    :param unset: paths of leaves or blocks that are taken out of the scope before
    :param replace: the tree is all that the scope has afterwards
    """
    kept = {} if replace else without(scoped(live, scope), *unset)
    touched = {*flat(tree), *unset}
    pools = [scope] if scope != ALL else list(live.get("pins", {}))
    for pool in pools:
        live = unpinned(live, pool, touched, drop=scope == ALL)
    return with_scope(live, scope, merged(kept, tree))


def unpinned(live: Live, pool: str, paths: Iterable[str], *, drop: bool = True) -> Live:
    """Return the document without the pins of a pool at these paths; `drop`: their values go too."""
    touched = tuple(paths)
    pins = live.get("pins", {}).get(pool, [])
    lifted = {pin for pin in pins if any(under(pin, path) for path in touched)}
    if not lifted:
        return live
    live = {**live, "pins": {**live["pins"], pool: [pin for pin in pins if pin not in lifted]}}
    return with_scope(live, pool, without(scoped(live, pool), *lifted)) if drop else tidy(live)


def pinned(live: Live, pool: str, values: dict[str, Any]) -> Live:
    """Return the document with these leaves of a pool set as pins."""
    if not values:
        return live
    pins = {*live.get("pins", {}).get(pool, []), *values}
    live = {**live, "pins": {**live.get("pins", {}), pool: sorted(pins)}}
    return with_scope(live, pool, merged(scoped(live, pool), nested(values)))


def under(leaf: str, path: str) -> bool:
    """Whether a leaf is that path, or in the block of that path."""
    return leaf == path or leaf.startswith(path + ".")


def tidy(live: Live) -> Live:
    """Return the document without empty parts, so that equal documents are equal."""
    pools = {pool: tree for pool, tree in live.get("pools", {}).items() if tree}
    pins = {pool: paths for pool, paths in live.get("pins", {}).items() if paths}
    tidy: Live = {"all": live.get("all", {}), "pools": pools}
    return {**tidy, "pins": pins} if pins else tidy
