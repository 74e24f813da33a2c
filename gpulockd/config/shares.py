"""Who is in a rollout's share: hosts where the fleet has several, else worker sessions of the one host.

Shares round up, so a share above nothing has at least one. Who is in comes from hashes, not from chance: every daemon
that looks finds the same, and who was in a stage is in the next.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence

_ROUNDING = 1e-9
"""0.1 × 30 is a hair more than 3 in floating point, and must not become 4."""


def size_of(share: float, living: int) -> int:
    """Return how many of the living are in a share (0 < share <= 1), rounded up."""
    return min(living, math.ceil(share * living - _ROUNDING))


def pools_in(rollout: str, living: Collection[str], share: float, already: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the pools that are in; those that were in already and live come first, the others by their hash.

    :param already: the pools of the stage before
    """
    ranked = sorted(living, key=lambda pool: (pool not in already, _rank(rollout, pool)))
    return tuple(ranked[: size_of(share, len(ranked))])


def _rank(rollout: str, pool: str) -> bytes:
    return hashlib.blake2b(f"{rollout}/{pool}".encode(), digest_size=8).digest()


def threshold(places: Collection[float], share: float, before: float = 0.0) -> float:
    """Return below which place in [0, 1) a session is in, so that the share's size of the living ones are.

    The share itself where that brings somebody in and not too many: then it is right for sessions to come, too. What
    stands already is kept while it fits.

    :param places: of the living sessions
    :param before: what stands already, 0 for nothing
    """
    if not places:
        return share
    most, ranked = size_of(share, len(places)), sorted(places)
    for fitting in (before, share):
        if fitting and 1 <= sum(place < fitting for place in ranked) <= most:
            return fitting
    if most == len(ranked):
        return 1.0
    return (ranked[most - 1] + ranked[most]) / 2
