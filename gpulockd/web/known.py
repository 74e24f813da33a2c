"""The statistics of this very moment: what the recorder has written, and the events that it has not counted yet.

So an answer is true at once, although the recorder writes only once a second. What was read serves all who ask within
a second; the newest events are counted each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import anyio
import msgspec
from msgspec.structs import replace

from gpulockd.events import Event, decode
from gpulockd.ledger.distribution import Distribution
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
        self._count: Count | None = None
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
            if self._count is None or stale:
                began_s = anyio.current_time()
                self._count = Count(await Statistics.read(ask, keys, since_s=window_s, by="minute"))
                self._read_at_s, self._window_s = began_s, window_s
            count = self._count
        count.take(await _after(feed, count.through))
        return count.known()

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


class Count:
    """Statistics that were read, and what has happened since; each event is counted once, however many ask."""

    def __init__(self, read: Statistics) -> None:
        self._read = read
        self._total, self._window = _copied(read.book.total), _copied(read.window)
        self._recent, self._since_ms = read.book.recent, read.book.since_ms

    @property
    def through(self) -> int:
        """The seq of the last event that is in it."""
        return self._total.through

    def take(self, events: Iterable[Event]) -> None:
        """Count these too; those that were counted before change nothing."""
        for event in events:
            facts = Facts.of(event)
            if facts.seq <= self._total.through:
                continue
            self._since_ms = self._since_ms or event.at_ms
            self._recent = recent_with(self._recent, facts.outcome)
            self._total.take(facts)
            if event.at_ms >= self._read.from_ms:
                self._window.take(facts)

    def known(self) -> Known:
        """Return what it says now; later events do not change that."""
        return Known(
            since_ms=self._since_ms,
            total=_copied(self._total),
            window=_copied(self._window),
            recent=self._recent,
            tasks=dict(self._read.tasks),
            missed=self._total.of("missed"),
        )


def _copied(tally: Tally) -> Tally:
    return Tally(tally.through, dict(tally.counts), _copied_times(tally.waits), _copied_times(tally.holds))


def _copied_times(times: Distribution) -> Distribution:
    return replace(times, buckets=dict(times.buckets))
