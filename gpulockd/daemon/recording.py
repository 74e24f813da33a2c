"""What the recorder knows while it counts: the pure part, events in, values to be written out.

Its law: counting the same events from the same stored values gives the same values, whoever counts and however often.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpulockd import events as happened
from gpulockd.ledger.recorded import (
    DAY_MS,
    HOUR_MS,
    KEPT_DAYS,
    LONGEST_TASK,
    MINUTE_MS,
    MOST_GAPS,
    MOST_TASKS,
    RECENT_HOLDS,
    TASKS_NAME,
    WHOLE,
    Batch,
    Book,
    Gap,
    Recorded,
    TaskBook,
    Write,
    day_name,
    encode,
    hour_name,
)
from gpulockd.ledger.tally import Facts, Tally, recent_with

_KEPT_MS = KEPT_DAYS * DAY_MS


class Recording:
    """The stored values that the next events change, and what has changed since the last batch."""

    def __init__(self, position: int | None, book: Book, tasks: dict[str, TaskBook]) -> None:
        """:param position: the seq through which `book` and `tasks` count; None if they are new"""
        self.position = position
        self.book = book
        self.tasks = tasks
        self._hours: dict[int, dict[str, Tally]] = {}
        self._days: dict[int, dict[str, Tally]] = {}
        self._changed_tasks: set[str] = set()
        self._changed_hours: set[tuple[int, str]] = set()
        self._changed_days: set[tuple[int, str]] = set()

    def __repr__(self) -> str:
        return f"<Recording through {self.position}, {len(self.tasks)} tasks>"

    def unknown(self, events: Iterable[happened.Event]) -> tuple[list[int], list[int]]:
        """Return the hours and the days of these events whose stored values are needed first."""
        hours = {event.at_ms // HOUR_MS for event in events}
        return sorted(hours - self._hours.keys()), sorted({hour // 24 for hour in hours} - self._days.keys())

    def learn(self, hours: dict[int, dict[str, Tally]], days: dict[int, dict[str, Tally]]) -> None:
        """Take the stored values of hours and days."""
        self._hours |= hours
        self._days |= days

    def find_gap(self, page: Recorded) -> Gap | None:
        """Look whether the stream has dropped events before the page; count them as missed. Call it before `take`.

        The first recording of a pool begins with what the stream still has: what was before is no gap.
        """
        dropped = page.added - page.length
        if self.position is None:
            self.book.read = dropped
            return None
        if page.first is None or page.first <= self.position or dropped == self.book.read:
            return None
        # Fewer than were read: the stream itself was removed and made anew.
        missed = dropped - self.book.read if dropped > self.book.read else None
        self.book.read = dropped
        event = _first(page)
        gap = Gap(self.book.last_ms, event.at_ms if event else page.wall_ms, missed)
        self.book.gaps = [*self.book.gaps, gap][-MOST_GAPS:]
        self.book.total.count("missed", missed or 0)
        return gap

    def take(self, seq: int, event: happened.Event | None) -> None:
        """Count the event with that seq; None is one that this version cannot read. Its hour and day must be known."""
        self.position = seq
        self.book.read += 1
        if event is None:
            return
        book, at_ms, facts = self.book, event.at_ms, Facts.of(event)
        book.since_ms = book.since_ms or at_ms
        book.last_ms = max(book.last_ms, at_ms)
        book.recent = recent_with(book.recent, facts.outcome)
        book.total.take(facts)
        hour, minute = at_ms // HOUR_MS, str(at_ms // MINUTE_MS % 60)
        for field in (minute, WHOLE):
            self._hours[hour].setdefault(field, Tally()).take(facts)
            self._changed_hours.add((hour, field))
        if event.task is not None and not event.is_probe:
            self._take_task(event.task[:LONGEST_TASK], event, facts)

    def _take_task(self, name: str, event: happened.Event, facts: Facts) -> None:
        day = event.at_ms // DAY_MS
        self._days[day].setdefault(name, Tally()).take(facts)
        self._changed_days.add((day, name))
        task = self.tasks.setdefault(name, TaskBook())
        self._changed_tasks.add(name)
        task.last_ms = max(task.last_ms, event.at_ms)
        if event.seq > task.through:
            task.through = event.seq
            if isinstance(event, happened.LockReleased) and event.held_ms is not None:
                task.recent_holds_ms = [*task.recent_holds_ms, event.held_ms][-RECENT_HOLDS:]

    def batch(self) -> Batch:
        """Return what has changed since the last call, to be written together.

        :raises ValueError: if nothing was ever taken
        """
        if self.position is None:
            raise ValueError("nothing was taken, so there is nothing to write")
        writes = self._drop_tasks()
        writes += [Write(TASKS_NAME, name, encode(self.tasks[name])) for name in sorted(self._changed_tasks)]
        for day, name in sorted(self._changed_days):
            writes.append(Write(day_name(day), name, encode(self._days[day][name]), (day + 1) * DAY_MS + _KEPT_MS))
        for hour, field in sorted(self._changed_hours):
            ends_ms = (hour + 1) * HOUR_MS + _KEPT_MS
            writes.append(Write(hour_name(hour), field, encode(self._hours[hour][field]), ends_ms))
        latest = max(self._hours, default=0)
        self._hours = {hour: fields for hour, fields in self._hours.items() if hour >= latest - 1}
        self._days = {day: fields for day, fields in self._days.items() if day >= (latest - 1) // 24}
        self._changed_tasks.clear()
        self._changed_hours.clear()
        self._changed_days.clear()
        return Batch(self.position, self.book, tuple(writes))

    def _drop_tasks(self) -> list[Write]:
        """Forget the least recent tasks beyond the most that are kept."""
        writes: list[Write] = []
        for name in sorted(self.tasks, key=lambda name: (self.tasks[name].last_ms, name))[:-MOST_TASKS]:
            del self.tasks[name]
            self._changed_tasks.discard(name)
            writes.append(Write(TASKS_NAME, name, b""))
            for day, tallies in self._days.items():
                if tallies.pop(name, None) is not None:
                    self._changed_days.discard((day, name))
                    writes.append(Write(day_name(day), name, b""))
        return writes


def _first(page: Recorded) -> happened.Event | None:
    return next((event for _, json in page.events if (event := happened.decode(json)) is not None), None)
