"""The parts of the page, each made on its own: where one cannot be had, the others still can."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio
import msgspec

from gpulockd.clock import boottime_s, wall_ms
from gpulockd.errors import GpuLockError
from gpulockd.events import Event
from gpulockd.ledger import verbs
from gpulockd.ledger.alerts import alert_read
from gpulockd.ledger.forecast import expected_starts
from gpulockd.ledger.statistics import Statistics
from gpulockd.web.alert_views import AlertsView, alerts_view
from gpulockd.web.backend import Backend
from gpulockd.web.known import MOST_EVENTS
from gpulockd.web.overseeing import CardReading
from gpulockd.web.page import cards, changes, performance, queue, status, timeline, waits
from gpulockd.web.page.words import Said, told

DAY_S = 86_400.0
STATISTICS_S = 5.0
STORE_S = 2.0
SHOWN_EVENTS = 16
SHOWN_LINES = 12

_NOISE = frozenset({"session_opened"})
"""Events that say nothing to a person who looks at the page."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the page: what its template is given, or `trouble`: why there is nothing."""

    name: str
    data: Any = None
    trouble: str = ""


class EventLine(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the list."""

    seq: int
    at_ms: int
    said: Said


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The head of the page."""

    host: str
    version: str
    pool: str
    up_s: float
    status: status.Status


class Alerts(msgspec.Struct, frozen=True, kw_only=True):
    """The alerts, and what was told of them."""

    view: AlertsView
    now_s: float


async def part(name: str, backend: Backend, *, span_min: int = 0) -> Part:
    """Return the part of that name (one of `MAKERS`).

    :param span_min: how much time the timeline shows (in minutes); 0: what fits
    """
    try:
        data = await (_timeline(backend, span_min) if name == "timeline" else MAKERS[name](backend))
    except GpuLockError as trouble:
        return without_store(name, backend, trouble.message)
    return Part(name=name, data=data, trouble="" if data is not None else "this daemon does not have it")


def without_store(name: str, backend: Backend, why: str) -> Part:
    """Return a part of which nothing is known, as the store is away. The head says that."""
    if name == "head":
        return Part(name=name, data=_as_head(backend, "", status.status(None, backend.reasons(), 0.0, ())))
    return Part(name=name, trouble=why)


async def _head(backend: Backend) -> Head:
    """Is anything wrong?"""
    snapshot = await backend.picture()
    store_s = await backend.pages.get("store", STORE_S, lambda: _store_s(backend))
    levels = [one.level for one in (await _alerts(backend)).alerts if one.state == "active" and not one.silenced]
    return _as_head(backend, snapshot.host, status.status(snapshot, backend.reasons(), store_s, levels))


def _as_head(backend: Backend, host: str, found: status.Status) -> Head:
    return Head(
        host=host,
        version=backend.version,
        pool=backend.pool,
        up_s=boottime_s() - backend.pages.began_s,
        status=found,
    )


async def _store_s(backend: Backend) -> float:
    began_s = anyio.current_time()
    await backend.ask(verbs.snapshot(backend.keys, length=1))
    return anyio.current_time() - began_s


async def _cards(backend: Backend) -> tuple[cards.Card, ...]:
    holds = (await _statistics(backend)).recent_holds_ms()
    snapshot = await backend.picture()
    times = cards.Times(holds=holds, limits=backend.limits_s, now_ms=snapshot.at_ms, ends_ms=backend.planned_ends_ms())
    return cards.cards(snapshot, _readings(backend), times)


async def _queue(backend: Backend) -> queue.Line:
    snapshot, settings = await backend.picture(), backend.settings.queue
    holds = (await _statistics(backend)).recent_holds_ms()
    ends_ms = backend.planned_ends_ms()
    starts = expected_starts(snapshot, holds, hold_back_s=settings.hold_back_after, ends_ms=ends_ms)
    return queue.line(snapshot, starts, snapshot.at_ms, settings.priority_step)


async def _timeline(backend: Backend, span_min: int = 0) -> timeline.Timeline:
    snapshot, events = await backend.picture(), await backend.events()
    reach_ms = events[0].at_ms if len(events) >= MOST_EVENTS else 0
    return timeline.timeline(snapshot, events, snapshot.at_ms, reach_ms=reach_ms, span_min=span_min)


async def _waits(backend: Backend) -> waits.Waits:
    window = (await _statistics(backend)).window
    return waits.waits(window.waits, timed_out=window.of("timed_out"), failed=window.of("failed"))


async def _changes(backend: Backend) -> changes.Changes | None:
    return await changes.changes(backend)


async def _alerts_part(backend: Backend) -> Alerts:
    return Alerts(view=await _alerts(backend), now_s=wall_ms() / 1000)


async def _performance(backend: Backend) -> performance.Performance:
    found = await _statistics(backend)
    snapshot, events = await backend.picture(), await backend.events()
    return performance.performance(snapshot, events, _readings(backend), found.window, found.tasks)


async def _events(backend: Backend) -> tuple[EventLine, ...]:
    shown: Sequence[Event] = [event for event in await backend.events() if event.kind not in _NOISE]
    return tuple(EventLine(seq=event.seq, at_ms=event.at_ms, said=told(event)) for event in shown[:-SHOWN_EVENTS:-1])


MAKERS: dict[str, Callable[[Backend], Awaitable[Any]]] = {
    "head": _head,
    "alerts": _alerts_part,
    "cards": _cards,
    "queue": _queue,
    "waits": _waits,
    "events": _events,
    "timeline": _timeline,
    "changes": _changes,
    "performance": _performance,
}
"""How each part is made, in the order of the page."""


def _readings(backend: Backend) -> Mapping[str, Sequence[CardReading]]:
    return {} if backend.oversees is None else backend.oversees.readings()


async def _statistics(backend: Backend) -> Statistics:
    """The last day, by hours: many readers of the page ask for it once in five seconds."""
    return await backend.pages.get(
        "statistics", STATISTICS_S, lambda: Statistics.read(backend.ask, backend.keys, since_s=DAY_S)
    )


async def _alerts(backend: Backend) -> AlertsView:
    async def read() -> AlertsView:
        return alerts_view(backend.pool, await backend.ask(alert_read(history=SHOWN_LINES)))

    return await backend.pages.get("alerts", 1.0, read, mark=lambda: backend.feed.last)
