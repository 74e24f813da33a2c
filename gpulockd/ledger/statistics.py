"""The statistics of a pool as a reader sees them: sums since the beginning, over a window, by minute, hour and task.

Written by the daemon's recorder, kept in the store, true over restarts of either (`ledger/recorded.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import (
    BOOK,
    DAY_MS,
    HOUR_MS,
    KEPT_DAYS,
    LONGEST_TASK,
    MINUTE_MS,
    TASKS,
    TASKS_NAME,
    WHOLE,
    Ask,
    Book,
    Stored,
    TaskBook,
    day_name,
    hour_name,
    read_book,
    read_tallies,
    read_tasks,
    recorded,
    summed,
)
from gpulockd.ledger.tally import Tally, recent_success_rate, recent_timeout_rate

MOST_HOURS = KEPT_DAYS * 24
MOST_HOURS_BY_MINUTE = 48


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted in one minute or hour, from `at_ms` on (wall clock)."""

    at_ms: int
    tally: Tally


class TaskStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One task: its last event (wall clock, ms), its last holds that it released (ms, latest last), and its counts.

    `window` is the sum of the window's days, each wholly.
    """

    last_ms: int
    recent_holds_ms: tuple[int, ...]
    window: Tally


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics at one moment; all times in ms of the server's wall clock.

    `book` has the sums since `book.since_ms` and the gaps; `window` the sum of the minutes that begin in it;
    `spans` its minutes or hours in which something happened; `tasks` what is known of each task that was asked for.
    """

    pool: str
    at_ms: int
    book: Book
    from_ms: int
    to_ms: int
    window: Tally
    spans: tuple[Span, ...]
    tasks: dict[str, TaskStatistics]

    @property
    def missed(self) -> int:
        """How many events are known to be counted nowhere, because the stream had dropped them."""
        return self.book.total.of("missed")

    @property
    def recent_success_rate(self) -> float:
        """The success rate of the last 20 attempts; 1.0 before any."""
        return recent_success_rate(self.book.recent)

    @property
    def recent_timeout_rate(self) -> float:
        """The timeout rate of the last 20 attempts; 0.0 before any."""
        return recent_timeout_rate(self.book.recent)

    def recent_holds_ms(self) -> dict[str, tuple[int, ...]]:
        """The last holds of each task (ms): what forecasts are made of."""
        return {name: task.recent_holds_ms for name, task in self.tasks.items()}

    @classmethod
    async def read(
        cls,
        ask: Ask,
        keys: PoolKeys,
        *,
        since_s: float = 86_400.0,
        from_ms: int | None = None,
        to_ms: int | None = None,
        by: Literal["minute", "hour"] = "hour",
        tasks: Collection[str] | None = None,
    ) -> Statistics:
        """Read the statistics of a pool in two calls; a pool without books has empty ones.

        :param since_s: the window's length (in seconds) up to its end, unless `from_ms` is given
        :param from_ms: the window's beginning (wall clock); never more than 14 days before now
        :param to_ms: its end, which the next window may begin with; None is now
        :param by: the length of `spans`; by minute the window is cut to its last 48 hours
        :param tasks: the tasks to tell of; None: all of them, () none
        :raises StoreUnavailable: if the store is away
        :raises UnreadableError: if another version of gpulockd has written them
        """
        of_tasks = (TASKS,) if tasks is None else tuple((TASKS_NAME, name[:LONGEST_TASK]) for name in tasks)
        first = await ask(recorded(keys, parts=(BOOK, *of_tasks)))
        if not isinstance(first, Stored):
            return cls(pool=keys.pool, at_ms=0, book=Book(), from_ms=0, to_ms=0, window=Tally(), spans=(), tasks={})
        to_ms = first.wall_ms if to_ms is None else to_ms
        begin_ms = to_ms - round(since_s * 1000) if from_ms is None else from_ms
        longest_ms = (MOST_HOURS_BY_MINUTE if by == "minute" else MOST_HOURS) * HOUR_MS
        begin_ms = max(begin_ms, first.wall_ms - MOST_HOURS * HOUR_MS, to_ms - longest_ms) // MINUTE_MS * MINUTE_MS
        hours = hours_of(begin_ms, to_ms, whole=by == "hour", now_ms=first.wall_ms)
        books = read_tasks({name: value for fields in first.hashes[1:] for name, value in fields.items()})
        days = days_of(begin_ms, to_ms, None if tasks is None else books)
        second = await ask(recorded(keys, parts=[(hour_name(hour), field) for hour, field in hours] + days))
        found = [read_tallies(fields) for fields in second.hashes] if isinstance(second, Stored) else []
        spans = [
            span
            for (hour, field), tallies in zip(hours, found, strict=False)
            for span in _spans(hour, tallies, field == WHOLE, begin_ms, to_ms, by)
        ]
        return cls(
            pool=keys.pool,
            at_ms=first.wall_ms,
            book=read_book(first.hashes[0])[1],
            from_ms=begin_ms,
            to_ms=to_ms,
            window=summed(span.tally for span in spans),
            spans=tuple(spans),
            tasks={name: _task(name, book, found[len(hours) :]) for name, book in books.items()},
        )


def _task(name: str, book: TaskBook, days: Sequence[Mapping[str, Tally]]) -> TaskStatistics:
    """Return what is known of a task, from its book and what was counted on the days."""
    window = summed(tallies[name] for tallies in days if name in tallies)
    return TaskStatistics(last_ms=book.last_ms, recent_holds_ms=tuple(book.recent_holds_ms), window=window)


def days_of(from_ms: int, to_ms: int, names: Collection[str] | None) -> list[tuple[str, str]]:
    """Return what is to be read of the days of a window: of all tasks, or of those."""
    fields = ("",) if names is None else tuple(names)
    days = range(from_ms // DAY_MS, to_ms // DAY_MS + 1)
    return [(day_name(day), field) for day in days for field in fields]


def hours_of(from_ms: int, to_ms: int, *, whole: bool, now_ms: int) -> list[tuple[int, str]]:
    """Return the hours of a window, and which field of each is to be read: of those wholly inside, the sum alone."""
    hours = []
    for hour in range(from_ms // HOUR_MS, to_ms // HOUR_MS + 1):
        begin_ms, end_ms = hour * HOUR_MS, (hour + 1) * HOUR_MS
        inside = begin_ms >= from_ms and (end_ms <= to_ms or to_ms >= now_ms)
        hours.append((hour, WHOLE if whole and inside else ""))
    return hours


def _spans(
    hour: int, tallies: dict[str, Tally], only_whole: bool, from_ms: int, to_ms: int, by: Literal["minute", "hour"]
) -> list[Span]:
    """Return what was counted in the part of an hour that is inside the window."""
    begin_ms = hour * HOUR_MS
    if only_whole:
        return [Span(at_ms=begin_ms, tally=tally) for tally in tallies.values()]
    minutes = sorted((begin_ms + int(field) * MINUTE_MS, tally) for field, tally in tallies.items() if field != WHOLE)
    inside = [Span(at_ms=at_ms, tally=tally) for at_ms, tally in minutes if from_ms <= at_ms < to_ms]
    if by == "minute" or not inside:
        return inside
    return [Span(at_ms=max(begin_ms, from_ms), tally=summed(span.tally for span in inside))]
