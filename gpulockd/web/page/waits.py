"""How long people wait: a histogram of few, wide steps, and the quantiles."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

import msgspec

from gpulockd.ledger.distribution import Distribution
from gpulockd.web.page.words import age

STEPS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Where each step of the histogram ends (in seconds); the last one has no end."""

_NAMES = (
    f"< {STEPS_S[0]:g} s",
    *(f"{low:g}–{high:g} s" if high < 120 else f"{low / 60:g}–{high / 60:g} m" for low, high in pairwise(STEPS_S)),
    f"> {STEPS_S[-1] / 60:g} m",
)
_EDGES = (*(f"{end:g}s" if end < 60 else f"{end / 60:g}m" for end in STEPS_S), "∞")


class Step(msgspec.Struct, frozen=True):
    """One step: what it counts, its end as the axis says it, how many, and the share of the fullest in percent."""

    name: str
    edge: str
    count: int
    share: float


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """The waits of what was acquired. Quantiles in words; empty before any."""

    count: int
    steps: tuple[Step, ...]
    p50: str
    p95: str
    p99: str
    longest: str
    timed_out: int
    failed: int


def waits(found: Distribution, *, timed_out: int = 0, failed: int = 0) -> Waits:
    """Return the histogram of these waits."""
    counts = [0] * (len(STEPS_S) + 1)
    below = 0
    for end_ms, up_to in found.up_to():
        counts[bisect_left(STEPS_S, end_ms / 1000)] += up_to - below
        below = up_to
    most = max(1, *counts)
    steps = zip(_NAMES, _EDGES, counts, strict=True)
    return Waits(
        count=found.count,
        steps=tuple(Step(name, edge, count, round(100 * count / most, 1)) for name, edge, count in steps),
        p50=_quantile(found, 0.5),
        p95=_quantile(found, 0.95),
        p99=_quantile(found, 0.99),
        longest=age(found.most_ms / 1000) if found.count else "",
        timed_out=timed_out,
        failed=failed,
    )


def _quantile(found: Distribution, share: float) -> str:
    ms = found.quantile_ms(share)
    return "" if ms is None else age(ms / 1000)
