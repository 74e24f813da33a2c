"""The recorder: reads the pool's events from where it stood, counts them, and keeps the statistics in the store.

Its law: every event counts once, whatever is killed at whatever moment. What was counted and through which event stands
in the store in one step, so the next recorder goes on from there, be it of this daemon, of a restarted one, or of
another; what the stream had dropped meanwhile is counted as missed, and said. Nothing is written while nothing happens.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from gpulockd.daemon.recording import Recording
from gpulockd.errors import StoreUnavailable
from gpulockd.events import Event, decode
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import (
    BOOK,
    TASKS,
    Ask,
    Recorded,
    Stored,
    Superseded,
    UnreadableError,
    day_name,
    hour_name,
    read_book,
    read_tallies,
    read_tasks,
    record,
    recorded,
)

BATCH_S = 1.0
"""One batch at most in so long (in seconds)."""

LOOK_S = 60.0
"""How long to believe that nothing happens, if no news come (in seconds)."""

ELSEWHERE_S = 15.0
"""How long to leave the pool to another recorder (in seconds)."""

PAGE = 500
AT_ONCE = 10
"""How many events are counted before others may run."""

RETRY_S = 0.2
MOST_RETRY_S = 5.0

_log = structlog.get_logger(__name__)


class News(Protocol):
    """Tells that something has happened: a hint, the stream decides. The web's feed is one."""

    @property
    def last(self) -> int:
        """The seq of the last event."""

    async def changed(self, seen: int) -> None:
        """Return as soon as `last` is beyond `seen` (a seq)."""


class _End(Enum):
    """Why a recording cannot go on as it is."""

    UNOPENED = auto()
    EMPTIED = auto()
    RESTORED = auto()
    ELSEWHERE = auto()


async def run(
    ask: Ask,
    keys: PoolKeys,
    news: News,
    *,
    batch_s: float = BATCH_S,
    elsewhere_s: float = ELSEWHERE_S,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run until cancelled; at any moment, without harm.

    :param ask: sends a script
    :param batch_s: the least time between two batches (in seconds)
    :param elsewhere_s: how long to leave the pool to another recorder (in seconds)
    """
    task_status.started()
    pause_s = RETRY_S
    said = False
    while True:
        seen = news.last
        try:
            end = await _record(ask, keys, news, batch_s)
        except StoreUnavailable as away:
            _log.debug("recorder.store_away", message=away.message)
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_RETRY_S)
            continue
        except UnreadableError as other:
            if not said:
                _log.error("recorder.unreadable", message=other.message)
            said = True
            await anyio.sleep(elsewhere_s)
            continue
        pause_s = RETRY_S
        if end is _End.UNOPENED:
            await _something_after(seen, news)
            await anyio.sleep(RETRY_S)
        elif end is _End.EMPTIED:
            said = False
            _log.warning("recorder.emptied", message="the statistics are gone with the store's data and begin anew")
        elif end is _End.RESTORED:
            said = False
            _log.info("recorder.restored", message="statistics of before were brought back; it goes on from them")
        else:
            if not said:
                _log.info("recorder.elsewhere", message="another daemon records this pool; it goes on doing so")
            said = True
            await anyio.sleep(elsewhere_s)


async def _record(ask: Ask, keys: PoolKeys, news: News, batch_s: float) -> _End:
    """Record from what the store has until that is not what this recorder has written."""
    stored = await ask(recorded(keys, parts=(BOOK, TASKS)))
    if not isinstance(stored, Stored):
        return _End.UNOPENED
    position, book = read_book(stored.hashes[0])
    recording = Recording(position, book, read_tasks(stored.hashes[1]))
    seen = news.last
    known = position
    page = await ask(record(keys, position=known, page=PAGE))
    while isinstance(page, Recorded):
        if page.events:
            known = recording.position
            await _take(recording, page, ask, keys)
            if len(page.events) < PAGE:
                await anyio.sleep(batch_s)
            seen = news.last
            page = await ask(record(keys, position=known, batch=recording.batch(), page=PAGE))
        else:
            await _something_after(seen, news)
            await anyio.sleep(batch_s)
            seen = news.last
            known = recording.position
            page = await ask(record(keys, position=known, page=PAGE))
    if not isinstance(page, Superseded):
        return _End.UNOPENED
    if page.position is None:
        return _End.EMPTIED
    # Another recorder is further on, or there was none before; only `gpulockd restore` goes back.
    return _End.RESTORED if known is not None and page.position < known else _End.ELSEWHERE


async def _take(recording: Recording, page: Recorded, ask: Ask, keys: PoolKeys) -> None:
    """Count a page of events, and let others run meanwhile."""
    events = [(seq, decode(json)) for seq, json in page.events]
    await _learn(recording, [event for _, event in events if event is not None], ask, keys)
    gap = recording.find_gap(page)
    if gap is not None:
        _log.warning(
            "recorder.gap",
            missed=gap.missed,
            message="events were dropped before the recorder came: "
            + ("an unknown number" if gap.missed is None else f"{gap.missed}, counted as missed"),
        )
    for n, (seq, event) in enumerate(events):
        recording.take(seq, event)
        if n % AT_ONCE == AT_ONCE - 1:
            await anyio.lowlevel.checkpoint()


async def _learn(recording: Recording, events: list[Event], ask: Ask, keys: PoolKeys) -> None:
    """Read what the store has of the hours and days of these events, where it is not known."""
    hours, days = recording.unknown(events)
    if not hours and not days:
        return
    names = [hour_name(hour) for hour in hours] + [day_name(day) for day in days]
    stored = await ask(recorded(keys, parts=[(name, "") for name in names]))
    # A pool that has lost its books meanwhile refuses the batch.
    hashes = stored.hashes if isinstance(stored, Stored) else ({},) * len(names)
    tallies = [read_tallies(fields) for fields in hashes]
    recording.learn(
        dict(zip(hours, tallies[: len(hours)], strict=True)), dict(zip(days, tallies[len(hours) :], strict=True))
    )


async def _something_after(seen: int, news: News) -> None:
    """Return when something has happened after `seen`, or after a while: a short one if the news know nothing yet."""
    with anyio.move_on_after(LOOK_S if seen else MOST_RETRY_S):
        await news.changed(seen)
