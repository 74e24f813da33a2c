"""What was measured under one configuration. Pure: outcomes in, numbers out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from gpulockd.trial.worker import Outcome

MOST_TROUBLES = 3


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """How the tasks fared: shares of all tasks, waits of those that got their GPU (in seconds), the store's CPU.

    `redis_cpu` is the share of one core that the store's main thread took. `troubles` are the first few errors.
    """

    tasks: int
    success_rate: float
    timeout_rate: float
    avg_wait_time: float
    p50_wait_time: float
    p95_wait_time: float
    longest_wait_time: float
    redis_cpu: float
    troubles: tuple[str, ...] = ()


def measured(outcomes: Sequence[Outcome], *, cpu_s: float, wall_s: float) -> Measured:
    """Count outcomes. The store took `cpu_s` seconds of CPU in `wall_s` seconds."""
    waits = sorted(outcome.waited_s for outcome in outcomes if not outcome.trouble)
    number = len(outcomes)
    return Measured(
        tasks=number,
        success_rate=len(waits) / number if number else 0.0,
        timeout_rate=sum(outcome.timed_out for outcome in outcomes) / number if number else 0.0,
        avg_wait_time=statistics.fmean(waits) if waits else 0.0,
        p50_wait_time=statistics.median(waits) if waits else 0.0,
        p95_wait_time=waits[min(len(waits) - 1, int(0.95 * len(waits)))] if waits else 0.0,
        longest_wait_time=waits[-1] if waits else 0.0,
        redis_cpu=cpu_s / wall_s if wall_s > 0 else 0.0,
        troubles=tuple(dict.fromkeys(outcome.trouble for outcome in outcomes if outcome.trouble))[:MOST_TROUBLES],
    )
