"""Names that were meant: which known one is nearest to what was written."""

from __future__ import annotations

from collections.abc import Iterable


def meant(written: str, known: Iterable[str], most: int | None = None) -> str | None:
    """The known name that a slip of the hand makes `written` from; None if none is near.

    difflib does the same, but costs a program that uses a lock more than all of this package.

    :param most: how many characters may be wrong; a third of the name unless told
    """
    word = written.lower()[:64]
    best = min(((_distance(word, name.lower()), name) for name in known), default=None)
    if best is None:
        return None
    limit = max(1, len(best[1]) // 3) if most is None else most
    return best[1] if best[0] <= limit else None


def _distance(one: str, other: str) -> int:
    """How many characters must be put in, left out, changed or swapped with the next (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]
