"""What happened: the holds and waits of the last hour, a row for each gpu, as places on a drawing and as a table.

Where nothing is older, or there is more than can be drawn, it is the last ten minutes, or two.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from gpulockd.events import Event, LockAcquired, LockExpired, LockReleased, LockRevoked, WaitAbandoned, WaitTimedOut
from gpulockd.model import Snapshot, Wants
from gpulockd.web.page.words import age, clock, gpu_name, job_name, named, short

SPANS_MS = (120_000, 600_000, 3_600_000)
MOST_HOLDS = 300
MOST_WAITS = 300
MOST_LISTED = 40
HUES = 6
LANES = 3

BAR_H, LANE_H, ROW_GAP, TOP = 26, 5, 10, 4
LEAST_WIDTH = 0.15

Interval = tuple[float, float]
Window = tuple[int, int]
"""When it begins (wall clock, ms) and how long it is (ms)."""


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A hold on the drawing: x and width in percent of the time shown. `lost`: it did not end by its own release."""

    x: float
    width: float
    label: str
    title: str
    hue: int
    lost: bool


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """A wait on the drawing; `lane` counts from the bar downwards. `over`: it ended without a gpu."""

    x: float
    width: float
    lane: int
    title: str
    over: bool


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One gpu, or those who wait for any."""

    name: str
    y: int
    bars: tuple[Bar, ...]
    waits: tuple[Wait, ...]


class Tick(msgspec.Struct, frozen=True):
    """A moment on the axis: x in percent."""

    x: float
    at_ms: int
    text: str


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A hold or wait as a line of the table."""

    at_ms: int
    what: str
    gpus: str
    job: str
    took: str
    end: str


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """The drawing (heights in pixels), and the table of the same."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    height: int
    span: str
    listed: tuple[Listed, ...]
    holds: int
    waits: int


class _Span(msgspec.Struct, frozen=True, kw_only=True):
    """A hold or wait (wall clock, ms). `end`: how it ended; empty: it goes on."""

    begin_ms: float
    end_ms: float
    gpus: tuple[str, ...]
    job: str
    task: str
    end: str
    lost: bool = False


def timeline(snapshot: Snapshot, events: Sequence[Event], now_ms: int) -> Timeline:
    """Return the last hour.

    :param events: at least those of the last hour, oldest first
    :param now_ms: the server's wall clock
    """
    holds = [*_ended_holds(events), *_holds(snapshot, now_ms)]
    waits = [*_ended_waits(events), *_waits(snapshot, now_ms)]
    span_ms = _span_ms([*holds, *waits], now_ms)
    window = (now_ms - span_ms, span_ms)
    holds = [hold for hold in holds if hold.end_ms >= window[0]][-MOST_HOLDS:]
    waits = [wait for wait in waits if wait.end_ms >= window[0]][-MOST_WAITS:]
    names = [record.gpu.key for record in snapshot.gpus]
    rows: list[Row] = []
    y = TOP
    for key in names:
        mine = [wait for wait in waits if key in wait.gpus]
        row = _row(gpu_name(key), y, [hold for hold in holds if key in hold.gpus], mine, window)
        rows.append(row)
        y += BAR_H + 4 + LANES * LANE_H + ROW_GAP
    nowhere = [wait for wait in waits if not set(wait.gpus) & set(names)]
    if nowhere:
        rows.append(_row("any GPU", y - BAR_H, [], nowhere, window))
        y += 4 + LANES * LANE_H + ROW_GAP
    listed = sorted((*map(_as_hold, holds), *map(_as_wait, waits)), key=lambda one: -one.at_ms)
    return Timeline(
        rows=tuple(rows),
        ticks=tuple(_tick(window, n) for n in range(5)),
        height=y,
        span=f"{span_ms // 60_000} min",
        listed=tuple(listed[:MOST_LISTED]),
        holds=len(holds),
        waits=len(waits),
    )


def _span_ms(spans: Sequence[_Span], now_ms: int) -> int:
    """Return how much time is shown: so much that all of it can be seen, if that is not too much to draw."""
    oldest_ms = min((span.begin_ms for span in spans), default=now_ms)
    chosen = next((n for n, span_ms in enumerate(SPANS_MS) if oldest_ms >= now_ms - span_ms), len(SPANS_MS) - 1)
    while chosen and sum(span.end_ms >= now_ms - SPANS_MS[chosen] for span in spans) > MOST_HOLDS:
        chosen -= 1
    return SPANS_MS[chosen]


def _ended_holds(events: Sequence[Event]) -> list[_Span]:
    return [
        _Span(
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


def _ended_waits(events: Sequence[Event]) -> list[_Span]:
    return [
        _Span(
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


def _holds(snapshot: Snapshot, now_ms: int) -> list[_Span]:
    return [
        _Span(
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


def _waits(snapshot: Snapshot, now_ms: int) -> list[_Span]:
    return [
        _Span(
            begin_ms=now_ms - ticket.waited_ms,
            end_ms=now_ms,
            gpus=ticket.chosen or Wants.parse(ticket.wants).keys,
            job=job_name(ticket.job),
            task=ticket.job.task,
            end="",
        )
        for ticket in snapshot.queue
    ]


def _row(name: str, y: int, holds: Sequence[_Span], waits: Sequence[_Span], window: Window) -> Row:
    lanes: list[float] = [0.0] * LANES
    drawn: list[Wait] = []
    for wait in sorted(waits, key=lambda one: one.begin_ms):
        # The lane that is free the longest: where all are taken, lines lie on each other.
        lane = next((n for n in range(LANES) if lanes[n] <= wait.begin_ms), LANES - 1)
        lanes[lane] = wait.end_ms
        x, width = _place(wait, window)
        end = wait.end or "waits still"
        title = f"{wait.job} waited {_length(wait)} from {clock(wait.begin_ms)}: {end}"
        drawn.append(Wait(x=x, width=width, lane=lane, title=title, over=wait.lost))
    return Row(name=name, y=y, bars=tuple(_bar(hold, window) for hold in holds), waits=tuple(drawn))


def _bar(hold: _Span, window: Window) -> Bar:
    x, width = _place(hold, window)
    title = (
        f"{hold.job} held {gpu_text(hold)} for {_length(hold)} from {clock(hold.begin_ms)}: {hold.end or 'held still'}"
    )
    return Bar(x=x, width=width, label=hold.job, title=title, hue=hue(hold.task), lost=hold.lost)


def gpu_text(span: _Span) -> str:
    """Return the gpus of a hold or wait, as people say them."""
    return ", ".join(gpu_name(key) for key in span.gpus) or "any GPU"


def hue(task: str) -> int:
    """Return which of the colours a task has: always the same one."""
    return zlib.crc32(task.encode("utf-8", "replace")) % HUES


def _place(span: _Span, window: Window) -> Interval:
    since_ms, span_ms = window
    begin = max(0.0, 100 * (span.begin_ms - since_ms) / span_ms)
    end = min(100.0, 100 * (span.end_ms - since_ms) / span_ms)
    width = max(LEAST_WIDTH, end - begin)
    return round(min(begin, 100 - width), 3), round(width, 3)


def _length(span: _Span) -> str:
    seconds = (span.end_ms - span.begin_ms) / 1000
    return short(seconds) if seconds < 10 else age(seconds)


def _as_hold(span: _Span) -> Listed:
    return Listed(
        at_ms=round(span.begin_ms),
        what="hold",
        gpus=gpu_text(span),
        job=span.job,
        took=_length(span),
        end=span.end or "held still",
    )


def _as_wait(span: _Span) -> Listed:
    return Listed(
        at_ms=round(span.begin_ms),
        what="wait",
        gpus=gpu_text(span),
        job=span.job,
        took=_length(span),
        end=span.end or "waits still",
    )


def _tick(window: Window, n: int) -> Tick:
    at_ms = window[0] + n * window[1] // 4
    return Tick(x=25.0 * n, at_ms=at_ms, text=clock(at_ms, seconds=window[1] < SPANS_MS[1]))
