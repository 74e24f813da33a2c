"""What differs between two trees of settings."""

from __future__ import annotations

from gpulockd.ledger.revisions import Change
from gpulockd.settings import Tree, flat


def differences(older: Tree, newer: Tree) -> tuple[Change, ...]:
    """Return the settings that differ, by name."""
    before, after = flat(older), flat(newer)
    return tuple(
        Change(path=path, before=before.get(path), after=after.get(path))
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    )
