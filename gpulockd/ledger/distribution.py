"""How long something took, as counts in fixed logarithmic buckets: mergeable, and small whatever is counted.

The buckets are the same everywhere and for ever, so tallies of minutes, hours, tasks and hosts add up exactly. After
HdrHistogram (https://hdrhistogram.org) and DDSketch (Masson, Rim and Lee, VLDB 2019): a bucket is 20 % wide, so a
quantile is at most 10 % away from the true one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise

import msgspec

WIDTH = 1.2
"""Each bucket ends at 1.2 times the end of the one before."""

LONGEST_MS = 7 * 24 * 3600 * 1000
"""What takes longer than seven days (in ms) is counted in the last bucket."""

ERROR = WIDTH**0.5 - 1
"""The most by which a quantile is wrong, relative to it, between 1 ms and seven days: 9.6 %."""


def _ends_ms() -> tuple[int, ...]:
    ends = [0, 1]
    while ends[-1] < LONGEST_MS:
        ends.append(max(ends[-1] + 1, int(ends[-1] * WIDTH)))
    return tuple(ends)


ENDS_MS = _ends_ms()
"""The last whole millisecond that each bucket counts; the first counts 0 ms. Durations are whole milliseconds."""


class Distribution(msgspec.Struct, array_like=True):
    """Durations in ms: how many, their sum, the shortest, the longest, and how many in each bucket."""

    count: int = 0
    sum_ms: int = 0
    least_ms: int = 0
    most_ms: int = 0
    buckets: dict[int, int] = {}

    @classmethod
    def of(cls, values_ms: Iterable[int]) -> Distribution:
        """Return the distribution of these durations (in ms)."""
        made = cls()
        for value_ms in values_ms:
            made.add(value_ms)
        return made

    def add(self, value_ms: int) -> None:
        """Count one duration (in ms); a negative one is none."""
        value_ms = max(0, value_ms)
        self.least_ms = value_ms if self.count == 0 else min(self.least_ms, value_ms)
        self.most_ms = max(self.most_ms, value_ms)
        self.count += 1
        self.sum_ms += value_ms
        bucket = min(bisect_left(ENDS_MS, value_ms), len(ENDS_MS) - 1)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def take_in(self, other: Distribution) -> None:
        """Count all that `other` has counted."""
        if other.count == 0:
            return
        self.least_ms = other.least_ms if self.count == 0 else min(self.least_ms, other.least_ms)
        self.most_ms = max(self.most_ms, other.most_ms)
        self.count += other.count
        self.sum_ms += other.sum_ms
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    @property
    def mean_ms(self) -> float | None:
        """The mean (in ms), exact; None if nothing was counted."""
        return self.sum_ms / self.count if self.count else None

    def quantile_ms(self, share: float) -> float | None:
        """Return the duration (in ms) that `share` (0 to 1) of all do not exceed; None if nothing was counted.

        It is the nearest-rank quantile, at most `ERROR` of it away; the shortest and the longest are exact.
        """
        if self.count == 0:
            return None
        rank = max(1, -int(-share * self.count // 1))
        if rank == 1:
            return float(self.least_ms)
        if rank >= self.count:
            return float(self.most_ms)
        below = 0
        for bucket in sorted(self.buckets):
            below += self.buckets[bucket]
            if below >= rank:
                return min(max(_middle_ms(bucket), self.least_ms), self.most_ms)
        return float(self.most_ms)

    def up_to(self) -> tuple[tuple[int, int], ...]:
        """Return (end of a bucket in ms, how many took at most so long) of all buckets in use, growing."""
        rows, below = [], 0
        for bucket in sorted(self.buckets):
            below += self.buckets[bucket]
            rows.append((ENDS_MS[bucket], below))
        return tuple(rows)


_MIDDLES_MS: tuple[float, ...] = (0.0, *(math.sqrt((low + 1) * high) for low, high in pairwise(ENDS_MS)))


def _middle_ms(bucket: int) -> float:
    """Return the geometric middle (in ms) of what the bucket counts."""
    return _MIDDLES_MS[bucket]
