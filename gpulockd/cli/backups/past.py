"""The statistics of a backup, brought back where the store has none: whole hours and days, and what was before.

The store's own counts stay. They are written by the recorder's own verb, which refuses when somebody has recorded
meanwhile, so no event is lost and none counts twice. The place up to which events are counted goes one back, by which
a recorder that runs sees that the book is another one and reads it anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from gpulockd.cli.backups.pack import Backup, Record
from gpulockd.cli.talk import NEGATIVE, USAGE, CommandError
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.load import load_name
from gpulockd.ledger.recorded import (
    BOOK,
    DAY_MS,
    HOUR_MS,
    KEPT_DAYS,
    MOST_GAPS,
    MOST_TASKS,
    TASKS,
    TASKS_NAME,
    Batch,
    Book,
    Gap,
    Recorded,
    Stored,
    TaskBook,
    Write,
    day_name,
    hour_name,
    read_book,
    record,
    recorded,
)
from gpulockd.ledger.store import Store
from gpulockd.ledger.tally import Tally

T = TypeVar("T")

KEPT_MS = KEPT_DAYS * DAY_MS
WRITES_AT_ONCE = 500
MOST_TRIES = 5


@dataclass
class Plan:
    """What the store lacks. `book`: of before the store's own; None if the store knows of that time."""

    pool: str
    spans: list[tuple[str, int, Record]] = field(default_factory=list)
    tasks: dict[str, TaskBook] = field(default_factory=dict)
    book: Book | None = None

    @property
    def does_nothing(self) -> bool:
        """Whether the store has it all."""
        return not self.spans and not self.tasks and self.book is None

    @property
    def text(self) -> str:
        """What it comes to, for people."""
        hours = sum(1 for name, _, _ in self.spans if not name.startswith((":load", TASKS_NAME)))
        parts = [f"{hours} hours", f"{len(self.tasks)} tasks"]
        if self.book is not None:
            parts.append(f"{self.book.total.attempts} attempts")
        return ", ".join(parts)


async def planned(store: Store, backup: Backup, pool: str) -> Plan | None:
    """Return what would be done; None if the backup has no statistics.

    :raises CommandError: if the pool was never opened in this store, or the backup's statistics cannot be read
    """
    kept = backup.one("book")
    if kept is None:
        return None
    stored = await _stored(store, pool, [BOOK, TASKS])
    try:
        book = _decoded(kept["book"], Book)
        tasks = (backup.one("tasks") or {}).get("tasks", {})
        read = {name: _uncounted(_decoded(value, TaskBook)) for name, value in tasks.items()}
    except (msgspec.DecodeError, KeyError) as wrong:
        raise CommandError(
            f"{backup.path}: its statistics cannot be read ({wrong})", "update gpulockd", NEGATIVE
        ) from None
    position, own = read_book(stored.hashes[0])
    room = max(0, MOST_TASKS - len(stored.hashes[1]))
    lacking = sorted((one for one in read.items() if one[0] not in stored.hashes[1]), key=lambda one: -one[1].last_ms)
    is_before = position is None or own.since_ms == 0 or own.since_ms > book.last_ms
    return Plan(
        pool=pool,
        spans=await _spans(store, backup, pool, stored.wall_ms),
        tasks=dict(lacking[:room]),
        book=book if is_before and book.since_ms else None,
    )


async def done(store: Store, plan: Plan) -> None:
    """Write it: the book and the tasks first, by which a recorder begins anew, then hours and days.

    :raises CommandError: if a recorder was faster every time
    """
    tasks = [Write(TASKS_NAME, name, msgspec.json.encode(task)) for name, task in plan.tasks.items()]
    if tasks or plan.book is not None:
        await _write(store, plan.pool, tasks, before=plan.book, anew=True)
    rest = list(_tallies(plan.spans))
    for first in range(0, len(rest), WRITES_AT_ONCE):
        await _write(store, plan.pool, rest[first : first + WRITES_AT_ONCE])


async def _write(
    store: Store, pool: str, writes: list[Write], *, before: Book | None = None, anew: bool = False
) -> None:
    """Write a part beside what the store counts now, and `before` into its book; `anew`: a recorder reads it all."""
    for _ in range(MOST_TRIES):
        stored = await _stored(store, pool, [BOOK])
        position, own = read_book(stored.hashes[0])
        through = max(0, (position or 0) - (1 if anew else 0))
        # The event at the old place comes again: its seq tells that it was counted, and it would be read twice.
        own.read -= (position or 0) - through
        book = own if before is None else _joined(before, own)
        batch = Batch(through, book, tuple(writes))
        answer = await store.ask(record(PoolKeys(pool), position=position, batch=batch, page=1))
        if isinstance(answer, Recorded):
            return
    raise CommandError("the statistics change faster than they can be written", "try again in a moment", NEGATIVE)


def _joined(before: Book, own: Book) -> Book:
    """A store's own book with that of before in front; its places in the stream are the store's own."""
    total = _decoded(before.total, Tally)
    total.take_in(own.total)
    total.through = own.total.through
    begins_ms = own.since_ms or before.last_ms
    gap = [Gap(before.last_ms, begins_ms, None)] if begins_ms > before.last_ms else []
    return Book(
        since_ms=before.since_ms,
        last_ms=max(before.last_ms, own.last_ms),
        read=own.read,
        recent=own.recent or before.recent,
        gaps=[*before.gaps, *gap, *own.gaps][-MOST_GAPS:],
        total=total,
    )


async def _stored(store: Store, pool: str, parts: list[tuple[str, str]]) -> Stored:
    stored = await store.ask(recorded(PoolKeys(pool), parts=parts))
    if not isinstance(stored, Stored):
        what = f"the store has no pool {pool!r}, so it cannot take statistics of it"
        raise CommandError(what, "start its daemon once, or name another one with --pool", USAGE)
    return stored


async def _spans(store: Store, backup: Backup, pool: str, wall_ms: int) -> list[tuple[str, int, Record]]:
    """The hours and days that the store lacks and that it would still keep: key, its end (ms), fields."""
    wanted = []
    for part, name_of, length_ms in (
        ("hour", hour_name, HOUR_MS),
        ("load", load_name, HOUR_MS),
        ("day", day_name, DAY_MS),
    ):
        for line in backup.all(part):
            number = int(line["number"])
            ends_ms = (number + 1) * length_ms + KEPT_MS
            if ends_ms > wall_ms:
                wanted.append((name_of(number), ends_ms, line["fields"]))
    found = []
    for first in range(0, len(wanted), 24):
        page = wanted[first : first + 24]
        stored = await _stored(store, pool, [(name, "") for name, _, _ in page])
        found += [span for span, fields in zip(page, stored.hashes, strict=True) if not fields]
    return found


def _tallies(spans: Iterable[tuple[str, int, Record]]) -> Iterable[Write]:
    """The values of hours and days; those of events get no place in this store's stream."""
    for name, ends_ms, fields in spans:
        for one, value in fields.items():
            counted = [0, *value[1:]] if value and not name.startswith(":load") else value
            yield Write(name, one, msgspec.json.encode(counted), ends_ms)


def _uncounted(task: TaskBook) -> TaskBook:
    """A task with no place in this store's stream."""
    return msgspec.structs.replace(task, through=0)


def _decoded(value: Any, kind: type[T]) -> T:
    """A value of the backup as the store's own JSON, whose objects may have numbers as names."""
    return msgspec.json.decode(msgspec.json.encode(value), type=kind)
