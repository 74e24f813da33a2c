"""The holds and waits of a pool as stretches of time: those that have ended, told by events, and those that go on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpulockd.events import Event, LockAcquired, LockExpired, LockReleased, LockRevoked, WaitAbandoned, WaitTimedOut
from gpulockd.model import Snapshot, Wants
from gpulockd.web.page.words import age, gpu_name, job_name, named


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A hold or wait (wall clock, ms). `end`: how it ended; empty: it goes on."""

    begin_ms: float
    end_ms: float
    gpus: tuple[str, ...]
    job: str
    task: str
    end: str
    lost: bool = False


def holds(snapshot: Snapshot, events: Sequence[Event], now_ms: int) -> list[Span]:
    """Return what was held, and what is; the latter to `now_ms` (the server's wall clock)."""
    return [*_ended_holds(events), *_holds(snapshot, now_ms)]


def waits(snapshot: Snapshot, events: Sequence[Event], now_ms: int) -> list[Span]:
    """Return who waited, and who does; the latter to `now_ms` (the server's wall clock)."""
    return [*_ended_waits(events), *_waits(snapshot, now_ms)]


def gpu_text(span: Span) -> str:
    """Return the gpus of a hold or wait, as people say them."""
    return ", ".join(gpu_name(key) for key in span.gpus) or "any GPU"


def length(span: Span) -> str:
    """Return how long it took, in words."""
    return age((span.end_ms - span.begin_ms) / 1000)


def _ended_holds(events: Sequence[Event]) -> list[Span]:
    return [
        Span(
            begin_ms=event.at_ms - event.held_ms,
            end_ms=event.at_ms,
            gpus=event.gpus,
            job=named(event.task or "", event.task_id or ""),
            task=event.task or "",
            end="released" if isinstance(event, LockReleased) else (event.reason or event.kind).replace("_", " "),
            lost=not isinstance(event, LockReleased),
        )
        for event in events
        if isinstance(event, LockReleased | LockExpired | LockRevoked) and event.held_ms is not None
    ]


def _ended_waits(events: Sequence[Event]) -> list[Span]:
    return [
        Span(
            begin_ms=event.at_ms - event.waited_ms,
            end_ms=event.at_ms,
            gpus=event.gpus,
            job=named(event.task or "", event.task_id or ""),
            task=event.task or "",
            end="granted" if isinstance(event, LockAcquired) else (event.reason or "left").replace("_", " "),
            lost=not isinstance(event, LockAcquired),
        )
        for event in events
        if isinstance(event, LockAcquired | WaitTimedOut | WaitAbandoned) and event.waited_ms
    ]


def _holds(snapshot: Snapshot, now_ms: int) -> list[Span]:
    return [
        Span(
            begin_ms=now_ms - lease.held_ms,
            end_ms=now_ms,
            gpus=lease.gpus,
            job=job_name(lease.job, lease.token),
            task=lease.job.task,
            end="",
        )
        for lease in snapshot.leases
        if lease.state != "member"
    ]


def _waits(snapshot: Snapshot, now_ms: int) -> list[Span]:
    return [
        Span(
            begin_ms=now_ms - ticket.waited_ms,
            end_ms=now_ms,
            gpus=ticket.chosen or Wants.parse(ticket.wants).keys,
            job=job_name(ticket.job),
            task=ticket.job.task,
            end="",
        )
        for ticket in snapshot.queue
    ]
