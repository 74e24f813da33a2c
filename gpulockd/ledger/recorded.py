"""What the recorder keeps in the store, and the two verbs that write and read it.

| key | type | what |
|---|---|---|
| `recorded` | hash | `position`: seq of the last event counted; `book`: a `Book` |
| `recorded:tasks` | hash | task -> `TaskBook`, at most 500, the least recent dropped |
| `recorded:tasks:<day>` | hash, 14 days | day since 1970: task -> `Tally` |
| `recorded:<hour>` | hash, 14 days | hour since 1970: minute "0" ... "59" and `all` -> `Tally` |
| `recorded:load:<hour>` | hash, 14 days | the same for `Load`, which nobody counts from events (`load.py`) |

Times are those of the events: the server's wall clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from gpulockd.errors import GpuLockError
from gpulockd.ledger import answers as a
from gpulockd.ledger import reading
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.lua_files import script
from gpulockd.ledger.tally import Tally
from gpulockd.ledger.verbs import Call

T = TypeVar("T")

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000

KEPT_DAYS = 14
"""How long minutes are kept, and the days of tasks."""

MOST_TASKS = 500
RECENT_HOLDS = 32
LONGEST_TASK = 128
MOST_GAPS = 10

WHOLE = "all"
"""The field of an hour that has the sum of its minutes."""

Ask = Callable[[Call[Any]], Awaitable[Any]]
"""Sends a script: `Store.ask`."""


class Gap(msgspec.Struct, frozen=True, array_like=True):
    """Events that the stream no longer had when the recorder came: between two moments (ms), so many; None: unknown."""

    from_ms: int
    to_ms: int
    missed: int | None


class Book(msgspec.Struct):
    """The sum of a pool since its statistics began.

    `since_ms`: the first event (wall clock, 0 before any); `last_ms`: the last one. `read`: how many events of the
    stream have gone by, the missed ones too. `recent`: the last outcomes as letters (`tally.recent_with`).
    """

    since_ms: int = 0
    last_ms: int = 0
    read: int = 0
    recent: str = ""
    gaps: list[Gap] = []
    total: Tally = msgspec.field(default_factory=Tally)


class TaskBook(msgspec.Struct, array_like=True):
    """One task: its last event (wall clock, ms), and its last holds that ended by its own release (ms, latest last)."""

    last_ms: int = 0
    through: int = 0
    recent_holds_ms: list[int] = []


def summed(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies."""
    total = Tally()
    for tally in tallies:
        total.take_in(tally)
    return total


class Write(msgspec.Struct, frozen=True):
    """One value: the key's name behind `recorded`, field, value (b"" removes it), end of the key (ms; None: never)."""

    name: str
    field: str
    value: bytes
    ends_ms: int | None = None


class Batch(msgspec.Struct, frozen=True):
    """What is written in one step: all that was counted through an event, and the book."""

    through: int
    book: Book
    writes: tuple[Write, ...]


class Recorded(a.Answer, frozen=True, kw_only=True):
    """The batch stands. `events`: the next (seq, JSON). `added` counts all events the stream ever had, `length` those
    that it has, `first` is the seq of the first of them (None: the stream is empty)."""

    wall_ms: int
    added: int
    length: int
    first: int | None
    events: tuple[tuple[int, bytes], ...]


class Superseded(a.Answer, frozen=True, kw_only=True):
    """Nothing was written: another recorder has come to `position` (None: the statistics are gone)."""

    position: int | None


class Stored(a.Answer, frozen=True, kw_only=True):
    """The hashes that were asked for, in their order, and the server's wall clock (ms)."""

    wall_ms: int
    hashes: tuple[dict[str, bytes], ...]


def record(
    keys: PoolKeys, *, position: int | None, batch: Batch | None = None, page: int
) -> Call[Recorded | Superseded | a.Unopened]:
    """Write a batch, if any, and get the events after it.

    :param position: the seq through which all is recorded as far as the caller knows; None for nothing
    :param page: the most events wanted (1 to 1000)
    """
    args: list[Any] = ["", _number(position), _number(batch.through if batch else None), str(page)]
    args.append(encode(batch.book) if batch else "")
    for write in batch.writes if batch else ():
        args += [write.name, write.field, write.value, _number(write.ends_ms)]
    return Call(script("record"), keys, tuple(args), _recorded)


def recorded(keys: PoolKeys, *, parts: Sequence[tuple[str, str]]) -> Call[Stored | a.Unopened]:
    """Read hashes of the recorder: pairs of the key's name behind `recorded` and a field, "" for all of them."""
    args = [word for part in parts for word in part]
    return Call(script("recorded"), keys, ("", *args), _stored)


def hour_name(hour: int) -> str:
    """The key's name behind `recorded` of an hour since 1970."""
    return f":{hour}"


def day_name(day: int) -> str:
    """The key's name behind `recorded` of the tasks of a day since 1970."""
    return f":tasks:{day}"


TASKS_NAME = ":tasks"
BOOK = ("", "")
TASKS = (TASKS_NAME, "")

_book = msgspec.json.Decoder(Book)
_task = msgspec.json.Decoder(TaskBook)
_tally = msgspec.json.Decoder(Tally)

encode = msgspec.json.encode


class UnreadableError(GpuLockError):
    """The statistics in the store were written by another version of gpulockd: update this one."""


def read_book(fields: dict[str, bytes]) -> tuple[int | None, Book]:
    """Return the position and the book that the hash `recorded` has.

    :raises UnreadableError: if it cannot be read; so do the other two
    """
    if not fields.get("position") or "book" not in fields:
        return None, Book()
    return int(fields["position"]), _read(_book, fields["book"])


def read_tasks(fields: dict[str, bytes]) -> dict[str, TaskBook]:
    """Return the tasks that the hash `recorded:tasks` has."""
    return {task: _read(_task, value) for task, value in fields.items()}


def read_tallies(fields: dict[str, bytes]) -> dict[str, Tally]:
    """Return the tallies of an hour by minute, or of a day by task."""
    return {field: _read(_tally, value) for field, value in fields.items()}


def _read(decoder: msgspec.json.Decoder[T], value: bytes) -> T:
    try:
        return decoder.decode(value)
    except msgspec.DecodeError as unreadable:
        raise UnreadableError(f"{UnreadableError.__doc__} ({unreadable})") from unreadable


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _recorded(reply: list[Any]) -> Recorded | Superseded | a.Unopened:
    if reply[0] == b"unopened":
        return a.NO_BOOKS
    clock, now_ms = reading._terms(reply)
    if reply[0] == b"superseded":
        return Superseded(clock=clock, now_ms=now_ms, position=int(reply[6]) if reply[6] else None)
    events = reply[10]
    return Recorded(
        clock=clock,
        now_ms=now_ms,
        wall_ms=int(reply[6]),
        added=int(reply[7]),
        length=int(reply[8]),
        first=int(reply[9]) if reply[9] else None,
        events=tuple((int(events[i]), events[i + 1]) for i in range(0, len(events), 2)),
    )


def _stored(reply: list[Any]) -> Stored | a.Unopened:
    if reply[0] == b"unopened":
        return a.NO_BOOKS
    clock, now_ms = reading._terms(reply)
    hashes = tuple(
        {flat[i].decode("utf-8", "replace"): flat[i + 1] for i in range(0, len(flat), 2)} for flat in reply[7]
    )
    return Stored(clock=clock, now_ms=now_ms, wall_ms=int(reply[6]), hashes=hashes)
