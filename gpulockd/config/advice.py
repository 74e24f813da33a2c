"""What to do after a change, from what was measured before and after it: a table of rules, the weightiest first.

Its law: where too few attempts were decided on either side, nothing is claimed, neither good nor bad. The load of the
server needs no attempts to be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from gpulockd.config.sides import Side

LEAST_SAMPLES = 20
"""With fewer attempts than that on a side, before and after are not compared."""

TIMEOUTS_ROSE = "⚠️ 超时率上升,建议调整 max_wait_time"
"""What users of the source document look for."""

AIM_SUCCESS = 0.95
MOST_REDIS_CPU = 0.8
MOST_TIMEOUTS = 0.1
MOST_BUSY = 0.95
CLEARLY = 0.1
"""A tenth more or less is worth a word."""
LEAST_WAIT_S = 0.1
"""Waits that differ by less (in seconds) are the same to whoever waits, whatever the percentage."""


class Rule(msgspec.Struct, frozen=True):
    """Where `holds(before, after)`, `says` is advised: text with the fields of both sides."""

    name: str
    counts: bool
    """Does it compare attempts, so that it needs enough of them?"""
    holds: Callable[[Side, Side], bool]
    says: str


def _up(before: float | None, after: float | None, by: float = 0.0) -> bool:
    return before is not None and after is not None and after > before * (1 + by)


def _down(before: float | None, after: float | None, by: float = 0.0) -> bool:
    return before is not None and after is not None and after < before * (1 - by)


def _waits_up(before: float | None, after: float | None) -> bool:
    return _up(before, after, CLEARLY) and _felt(before, after)


def _waits_down(before: float | None, after: float | None) -> bool:
    return _down(before, after, CLEARLY) and _felt(before, after)


def _felt(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and abs(after - before) >= LEAST_WAIT_S


def _over(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


RULES = (
    Rule("timeouts_rose", True, lambda b, a: _up(b.timeout_rate, a.timeout_rate), TIMEOUTS_ROSE),
    Rule(
        "many_timeouts",
        True,
        lambda b, a: _over(a.timeout_rate, MOST_TIMEOUTS),
        "{a.timeout_rate:.1%} of the attempts time out, more than 10%: raise max_wait_time, or go back with "
        "'gpulockd config rollback'",
    ),
    Rule(
        "success_fell",
        True,
        lambda b, a: (
            a.success_rate is not None and a.success_rate < AIM_SUCCESS and _down(b.success_rate, a.success_rate)
        ),
        "success fell from {b.success_rate:.1%} to {a.success_rate:.1%}, below the aim of 95%: look at "
        "'gpulockd events', or go back with 'gpulockd config rollback'",
    ),
    Rule(
        "redis_is_busy",
        False,
        lambda b, a: _over(a.redis_cpu, MOST_REDIS_CPU),
        "Redis uses {a.redis_cpu:.0%} of a core, more than 80%: raise poll_interval",
    ),
    Rule(
        "redis_works_more",
        False,
        lambda b, a: _up(b.redis_cpu, a.redis_cpu, 0.5) and _over(a.redis_cpu, 0.1),
        "Redis uses {a.redis_cpu:.0%} of a core instead of {b.redis_cpu:.0%}: see whether a longer poll_interval does",
    ),
    Rule(
        "waits_grew",
        True,
        lambda b, a: _waits_up(b.avg_wait_time, a.avg_wait_time),
        "waits grew from {b.avg_wait_time:.3g} s to {a.avg_wait_time:.3g} s: go back with 'gpulockd config rollback' "
        "if the load is the same",
    ),
    Rule(
        "longest_waits_grew",
        True,
        lambda b, a: _waits_up(b.wait_p95, a.wait_p95) and not _waits_up(b.avg_wait_time, a.avg_wait_time),
        "the longest waits grew (p95 {b.wait_p95:.3g} s to {a.wait_p95:.3g} s) although the mean did not: look who "
        "waits with 'gpulockd queue'",
    ),
    Rule(
        "waits_fell",
        True,
        lambda b, a: _waits_down(b.avg_wait_time, a.avg_wait_time) and not _up(b.timeout_rate, a.timeout_rate),
        "waits fell from {b.avg_wait_time:.3g} s to {a.avg_wait_time:.3g} s and timeouts did not rise: keep it",
    ),
    Rule(
        "timeouts_fell",
        True,
        lambda b, a: _down(b.timeout_rate, a.timeout_rate) and not _waits_down(b.avg_wait_time, a.avg_wait_time),
        "timeouts fell from {b.timeout_rate:.1%} to {a.timeout_rate:.1%}: keep it",
    ),
    Rule(
        "gpus_are_full",
        False,
        lambda b, a: _over(a.busy_share, MOST_BUSY),
        "the GPUs are held {a.busy_share:.0%} of the time: waits come from load, which no setting takes away",
    ),
)

NO_DIFFERENCE = "no clear difference: keep it, or go back, as you like"


def few(before: Side, after: Side, least: int = LEAST_SAMPLES) -> str | None:
    """Return what is missing for a comparison, in words; None if there are attempts enough."""
    if min(before.attempts, after.attempts) >= least:
        return None
    counted = f"{before.attempts} before, {after.attempts} after"
    return f"too few attempts to compare: {counted}, {least} on each side are needed"


def advice(before: Side, after: Side, *, least: int = LEAST_SAMPLES) -> tuple[str, ...]:
    """Return all that is advised, the weightiest first; never nothing."""
    missing = few(before, after, least)
    said = [
        rule.says.format(b=before, a=after)
        for rule in RULES
        if not (rule.counts and missing) and rule.holds(before, after)
    ]
    if missing:
        return (missing, *said)
    return tuple(said) or (NO_DIFFERENCE,)


def beyond_chance(before: Side, after: Side, rate: Callable[[Side], float | None]) -> bool | None:
    """Return whether two rates differ by more than chance would explain in 19 of 20 cases; None if one is not known.

    The z-test of two proportions (two-sided, 5 %).
    """
    one, other = rate(before), rate(after)
    if one is None or other is None or not before.attempts or not after.attempts:
        return None
    both = (one * before.attempts + other * after.attempts) / (before.attempts + after.attempts)
    spread = math.sqrt(both * (1 - both) * (1 / before.attempts + 1 / after.attempts))
    return spread > 0 and abs(other - one) / spread > 1.96
