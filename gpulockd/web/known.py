"""The statistics of this very moment: what the recorder has written, and the events that it has not counted yet.

So an answer is true at once, although the recorder writes only once a second. What was read serves all who ask within
a second; the newest events are counted each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import anyio
import msgspec

from gpulockd.events import Event, decode
from gpulockd.ledger.happened import lately
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import Ask
from gpulockd.ledger.statistics import Statistics, TaskStatistics
from gpulockd.ledger.tally import Facts, Tally, recent_success_rate, recent_timeout_rate, recent_with
from gpulockd.web.feed import Feed

FRESH_S = 1.0
SOON_S = 0.1
"""How long what was read serves (in seconds), and how long the events do when more have happened."""

MOST_PAGES = 8
"""How many pages of uncounted events are looked at; a recorder that is further behind is waited for."""

_decoded = lru_cache(maxsize=2048)(decode)
"""The same few events are counted at each look, until the recorder has written them."""

LOOK_BACK_S = 86_400.0
MOST_EVENTS = 2000


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known now. `total` is since `since_ms`, `window` of the last minutes; both count each event once.

    `recent` are the last outcomes as letters; `tasks` may lag by a second.
    """

    since_ms: int
    total: Tally
    window: Tally
    recent: str
    tasks: dict[str, TaskStatistics]
    missed: int = 0

    @property
    def recent_success_rate(self) -> float:
        """The success rate of the last 20 attempts; 1.0 before any."""
        return recent_success_rate(self.recent)

    @property
    def recent_timeout_rate(self) -> float:
        """The timeout rate of the last 20 attempts; 0.0 before any."""
        return recent_timeout_rate(self.recent)

    def holds_ms(self) -> dict[str, tuple[int, ...]]:
        """The last holds of each task (ms): what forecasts are made of."""
        return {name: task.recent_holds_ms for name, task in self.tasks.items()}


class Knowing:
    """Reads the statistics of one pool for all routes of this daemon."""

    def __init__(self) -> None:
        self._reading = anyio.Lock()
        self._read: Statistics | None = None
        self._read_at_s = float("-inf")
        self._window_s = 0.0
        self._events: tuple[Event, ...] = ()
        self._events_at_s = float("-inf")
        self._events_seq = -1

    def __repr__(self) -> str:
        return "<Knowing>"

    async def now(self, ask: Ask, keys: PoolKeys, feed: Feed, *, window_s: float) -> Known:
        """Return what is known now.

        :param window_s: how far back `window` reaches (in seconds)
        :raises StoreUnavailable: if the store is away
        :raises UnreadableError: if another version of gpulockd has written the statistics
        """
        async with self._reading:
            stale = anyio.current_time() - self._read_at_s > FRESH_S or window_s != self._window_s
            if self._read is None or stale:
                began_s = anyio.current_time()
                self._read = await Statistics.read(ask, keys, since_s=window_s, by="minute")
                self._read_at_s, self._window_s = began_s, window_s
            read = self._read
        return with_events(read, await _after(feed, read.book.total.through))

    async def events(self, ask: Ask, keys: PoolKeys, feed: Feed) -> Sequence[Event]:
        """Return the last events of a day, at most about 2000, oldest first.

        :raises StoreUnavailable: if the store is away
        """
        async with self._reading:
            age_s = anyio.current_time() - self._events_at_s
            if age_s > (SOON_S if feed.last != self._events_seq else FRESH_S):
                seq, at_s = feed.last, anyio.current_time()
                newest = await lately(ask, keys, since_ms=0, most=MOST_EVENTS)
                begin_ms = newest.wall_ms - round(LOOK_BACK_S * 1000)
                self._events = tuple(event for event in newest.events if event.at_ms >= begin_ms)
                self._events_seq, self._events_at_s = seq, at_s
            return self._events


async def _after(feed: Feed, seq: int) -> list[Event]:
    """Return the events after `seq` that can be read."""
    found: list[Event] = []
    for _ in range(MOST_PAGES):
        if seq >= feed.last:
            break
        page = await feed.after(seq)
        if not page:
            break
        found += [event for happened in page if (event := _decoded(happened.json)) is not None]
        seq = page[-1].seq
    return found


def with_events(read: Statistics, events: Iterable[Event]) -> Known:
    """Return the statistics with these events counted; those that were counted before change nothing."""
    total, window = _copied(read.book.total), _copied(read.window)
    recent, since_ms = read.book.recent, read.book.since_ms
    for event in events:
        facts = Facts.of(event)
        if facts.seq <= total.through:
            continue
        since_ms = since_ms or event.at_ms
        recent = recent_with(recent, facts.outcome)
        total.take(facts)
        if event.at_ms >= read.from_ms:
            window.take(facts)
    return Known(
        since_ms=since_ms, total=total, window=window, recent=recent, tasks=dict(read.tasks), missed=total.of("missed")
    )


def _copied(tally: Tally) -> Tally:
    made = Tally()
    made.take_in(tally)
    return made
