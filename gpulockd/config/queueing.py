"""The queue of the latest events, played through once more with shorter holds and waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from gpulockd.config.sides import quantile_s
from gpulockd.events import Event, LockAcquired
from gpulockd.ledger.distribution import Distribution
from gpulockd.ledger.tally import HOLDS

FEWEST = 20
"""From fewer waits no 95 % quantile is made."""

LimitMs = Callable[[str], float]
"""Task -> a limit (in ms)."""


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """The 95 % quantile of so many waits, as they were and as they would have been (in seconds); None: too few."""

    waits: int = 0
    before_p95_s: float | None = None
    after_p95_s: float | None = None


class _Job(msgspec.Struct):
    asked_ms: int
    began_ms: int
    ended_ms: int | None
    task: str
    gpus: tuple[str, ...]


def replay(events: Sequence[Event], *, hard_ms: LimitMs, max_wait_ms: LimitMs) -> Replay:
    """Let every job of the events wait for the gpus that it had, in the order in which they began.

    Who shared a gpu with somebody begins as it did. Who would have waited too long leaves its gpus to the next.
    """
    jobs = _jobs(events)
    if len(jobs) < FEWEST:
        return Replay()
    free_was: dict[str, float] = {}
    free: dict[str, float] = {}
    before, after = Distribution(), Distribution()
    for job in jobs:
        before.add(job.began_ms - job.asked_ms)
        shared = any(free_was.get(gpu, 0.0) > job.began_ms for gpu in job.gpus)
        waited_for = max((free.get(gpu, 0.0) for gpu in job.gpus), default=0.0)
        # Whoever waited for something else than these gpus (another's turn, a hand-off) goes on doing so.
        idle_ms = job.began_ms - max((free_was.get(gpu, 0.0) for gpu in job.gpus), default=0.0)
        slack_ms = min(max(0.0, idle_ms), float(job.began_ms - job.asked_ms))
        begins_ms = float(job.began_ms) if shared else min(job.began_ms, max(job.asked_ms, waited_for) + slack_ms)
        held_ms = float("inf") if job.ended_ms is None else float(job.ended_ms - job.began_ms)
        for gpu in job.gpus:
            free_was[gpu] = max(free_was.get(gpu, 0.0), job.began_ms + held_ms)
        if begins_ms - job.asked_ms > max_wait_ms(job.task):
            continue
        after.add(round(begins_ms - job.asked_ms))
        for gpu in job.gpus:
            free[gpu] = max(free.get(gpu, 0.0), begins_ms + min(held_ms, hard_ms(job.task)))
    return Replay(waits=len(jobs), before_p95_s=quantile_s(before, 0.95), after_p95_s=quantile_s(after, 0.95))


def _jobs(events: Sequence[Event]) -> list[_Job]:
    """Return the jobs that began among the events, in that order; one that has not ended has no end."""
    jobs: dict[str, _Job] = {}
    for event in events:
        if isinstance(event, LockAcquired) and event.lease is not None and event.waited_ms is not None:
            jobs[event.lease] = _Job(
                event.at_ms - event.waited_ms, event.at_ms, None, event.task or "", tuple(event.gpus)
            )
        elif isinstance(event, HOLDS) and event.lease in jobs:
            jobs[event.lease].ended_ms = event.at_ms
    return list(jobs.values())
