"""What happened: the holds and waits of the last hour, a row for each gpu, as places on a drawing and as a table.

It is as much time as what there is fills, and no more than can be drawn, unless the reader chooses.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

from gpulockd.events import Event
from gpulockd.model import Snapshot
from gpulockd.web.page import spans
from gpulockd.web.page.spans import Span
from gpulockd.web.page.words import clock, gpu_name

SPANS_MIN = (2, 10, 20, 30, 60)
"""How much time can be shown (in minutes)."""

MOST_HOLDS = 300
MOST_WAITS = 300
MOST_LISTED = 40
HUES = 6
LANES = 3

BAR_H, LANE_H, ROW_GAP, TOP = 26, 5, 10, 4
LEAST_H, STEP_H = 6, 11
LEAST_WIDTH = 0.15

MINUTE_MS = 60_000
TOUCH_MS = 50
"""Holds that overlap by less follow each other: their ends are told by different clocks."""

Interval = tuple[float, float]
Window = tuple[int, int]
"""When it begins (wall clock, ms) and how long it is (ms)."""


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A hold on the drawing: x and width in percent of the time shown, height and place of the text in pixels.

    One that shares its gpu stands lower before the one that was there first. `lost`: it did not end by its own release.
    """

    x: float
    width: float
    height: int
    text_y: int
    small: bool
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
    """One gpu, or those who wait for any. `name_y`: the foot of its name."""

    name: str
    y: int
    name_y: int
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
    """The drawing (heights in pixels), and the table of the same.

    `span_min`: how much time it shows; `chosen`: by the reader. `since_ms`: what was before is not known here.
    `left_out`: holds or waits that there is no room for.
    """

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    height: int
    span_min: int
    chosen: bool
    since_ms: int | None
    left_out: int
    listed: tuple[Listed, ...]
    holds: int
    waits: int


def timeline(
    snapshot: Snapshot, events: Sequence[Event], now_ms: int, *, reach_ms: int = 0, span_min: int = 0
) -> Timeline:
    """Return the last hour, or less.

    :param events: at least those of the last hour, oldest first
    :param now_ms: the server's wall clock
    :param reach_ms: since when `events` are all that there were: what is before is not shown as if nothing had been
    :param span_min: how much the reader wants to see (in minutes); 0: what fits
    """
    holds = spans.holds(snapshot, events, now_ms)
    waits = spans.waits(snapshot, events, now_ms)
    shown_min = span_min or _span_min([*holds, *waits], now_ms, reach_ms)
    window = (now_ms - shown_min * MINUTE_MS, shown_min * MINUTE_MS)
    all_holds = [hold for hold in holds if hold.end_ms >= window[0]]
    all_waits = [wait for wait in waits if wait.end_ms >= window[0]]
    holds, waits = all_holds[-MOST_HOLDS:], all_waits[-MOST_WAITS:]
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
        row = _row("any GPU", y - BAR_H, [], nowhere, window)
        rows.append(msgspec.structs.replace(row, name_y=y + 4 + LANES * LANE_H - 3))
        y += 4 + LANES * LANE_H + ROW_GAP
    listed = sorted((*map(_as_hold, holds), *map(_as_wait, waits)), key=lambda one: -one.at_ms)
    return Timeline(
        rows=tuple(rows),
        ticks=tuple(_tick(window, n) for n in range(5)),
        height=y,
        span_min=shown_min,
        chosen=bool(span_min),
        since_ms=reach_ms if reach_ms > window[0] else None,
        left_out=len(all_holds) - len(holds) + len(all_waits) - len(waits),
        listed=tuple(listed[:MOST_LISTED]),
        holds=len(holds),
        waits=len(waits),
    )


def _span_min(shown: Sequence[Span], now_ms: int, reach_ms: int) -> int:
    """Return how much time is shown (min): so much that all of it can be seen, if that is not too much to draw."""
    since_ms = [now_ms - span_min * MINUTE_MS for span_min in SPANS_MIN]
    oldest_ms = min((span.begin_ms for span in shown), default=now_ms)
    fits = next((n for n, since in enumerate(since_ms) if oldest_ms >= since), len(since_ms) - 1)
    while fits and since_ms[fits] < reach_ms:
        fits -= 1
    while fits and sum(span.end_ms >= since_ms[fits] for span in shown) > MOST_HOLDS:
        fits -= 1
    return SPANS_MIN[fits]


def _row(name: str, y: int, holds: Sequence[Span], waits: Sequence[Span], window: Window) -> Row:
    lanes: list[float] = [0.0] * LANES
    drawn: list[Wait] = []
    for wait in sorted(waits, key=lambda one: one.begin_ms):
        # The lane that is free the longest: where all are taken, lines lie on each other.
        lane = next((n for n in range(LANES) if lanes[n] <= wait.begin_ms), LANES - 1)
        lanes[lane] = wait.end_ms
        x, width = _place(wait, window)
        end = wait.end or "waits still"
        title = f"{wait.job} waited {spans.length(wait)} from {clock(wait.begin_ms)}: {end}"
        drawn.append(Wait(x=x, width=width, lane=lane, title=title, over=wait.lost))
    ordered = sorted(holds, key=lambda one: one.begin_ms)
    return Row(name=name, y=y, name_y=y + 17, bars=_bars(ordered, window), waits=tuple(drawn))


def _bars(ordered: Sequence[Span], window: Window) -> tuple[Bar, ...]:
    """Return the bars of holds, which come in the order of their beginning; who shares a gpu lies on the lower part."""
    bars: list[Bar] = []
    standing: list[Span] = []
    for n, hold in enumerate(ordered):
        standing = [other for other in standing if other.end_ms > hold.begin_ms + TOUCH_MS]
        follower = ordered[n + 1] if n + 1 < len(ordered) else None
        covered = follower is not None and follower.begin_ms < hold.end_ms - TOUCH_MS
        bars.append(_bar(hold, window, len(standing), covered=covered))
        standing.append(hold)
    return tuple(bars)


def _bar(hold: Span, window: Window, beneath: int, *, covered: bool) -> Bar:
    x, width = _place(hold, window)
    when = f"for {spans.length(hold)} from {clock(hold.begin_ms)}"
    title = f"{hold.job} held {spans.gpu_text(hold)} {when}: {hold.end or 'held still'}"
    height = max(LEAST_H, BAR_H - beneath * STEP_H)
    return Bar(
        x=x,
        width=width,
        height=height,
        text_y=0 if covered else height - (21 if height == BAR_H else 14),
        small=covered or height < BAR_H,
        label=hold.job,
        title=title,
        hue=hue(hold.task),
        lost=hold.lost,
    )


def hue(task: str) -> int:
    """Return which of the colours a task has: always the same one."""
    return zlib.crc32(task.encode("utf-8", "replace")) % HUES


def _place(span: Span, window: Window) -> Interval:
    since_ms, span_ms = window
    begin = max(0.0, 100 * (span.begin_ms - since_ms) / span_ms)
    end = min(100.0, 100 * (span.end_ms - since_ms) / span_ms)
    width = max(LEAST_WIDTH, end - begin)
    return round(min(begin, 100 - width), 3), round(width, 3)


def _as_hold(span: Span) -> Listed:
    return Listed(
        at_ms=round(span.begin_ms),
        what="hold",
        gpus=spans.gpu_text(span),
        job=span.job,
        took=spans.length(span),
        end=span.end or "held still",
    )


def _as_wait(span: Span) -> Listed:
    return Listed(
        at_ms=round(span.begin_ms),
        what="wait",
        gpus=spans.gpu_text(span),
        job=span.job,
        took=spans.length(span),
        end=span.end or "waits still",
    )


def _tick(window: Window, n: int) -> Tick:
    step_ms = window[1] // 4
    at_ms = window[0] + n * step_ms
    return Tick(x=25.0 * n, at_ms=at_ms, text=clock(at_ms, seconds=step_ms % MINUTE_MS > 0))
