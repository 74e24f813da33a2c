"""The form of each line of a backup: what is not of it makes the whole file one that is not restored.

A checksum says that a file is whole, not who wrote it. Numbers are bounded, for a count or a moment that no clock has
would stand in the statistics for good.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gpulockd.cli.backups.unsaid import Way, leads_to_marks
from gpulockd.ledger.audit import AuditLine
from gpulockd.ledger.distribution import ENDS_MS
from gpulockd.ledger.load import Load
from gpulockd.ledger.recorded import Book, TaskBook
from gpulockd.ledger.revision import Revision
from gpulockd.ledger.tally import Tally

Record = dict[str, Any]

DEEPEST = 64
"""How deep values may lie in one another: no configuration and no event comes near it."""

LATEST_MS = 253_402_300_799_000
"""The end of the year 9999 (unix ms); no count comes near it either."""

Number = Annotated[int, Meta(ge=0, le=2**53)]
Moment = Annotated[int, Meta(ge=0, le=LATEST_MS)]
Span = Annotated[int, Meta(ge=0, le=LATEST_MS // 3_600_000)]
Pool = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Minute = Annotated[str, Meta(pattern=r"^([0-9]|[1-5][0-9]|all)$")]
Task = Annotated[str, Meta(max_length=256)]


class Head(msgspec.Struct):
    """The first line. `at`: when it was taken (unix seconds)."""

    gpulockd_backup: Annotated[int, Meta(ge=1)]
    pool: Pool
    at: Annotated[float, Meta(ge=0, le=LATEST_MS / 1000)]
    made_by: str
    host: str = ""
    store: str = ""
    revision: Number | None = None
    secrets: bool = False


class _Live(msgspec.Struct, forbid_unknown_fields=True):
    all: Record = {}
    pools: dict[Pool, Record] = {}
    pins: dict[Pool, list[str]] = {}


class _State(msgspec.Struct):
    current: Number
    id: str
    stable: Number | None
    live: _Live
    hidden: list[Way]


class _Revision(Revision, frozen=True, kw_only=True):
    live: _Live  # type: ignore[assignment] # the form of what is plain there
    number: Number
    at_ms: Moment
    stable_at_ms: Moment = 0
    of: Number | None = None
    hidden: list[Way] = msgspec.field(default_factory=list)


class _File(msgspec.Struct):
    path: str | None = None
    text: str | None = None
    tree: Record | None = None
    hidden: list[Any] = []
    trouble: str = ""


class _Audit(AuditLine, frozen=True, kw_only=True):
    at_ms: Moment
    revision: Number | None = None
    id: Annotated[str, Meta(pattern=r"^[0-9]{1,15}-[0-9]{1,9}$")]


class _Book(msgspec.Struct):
    position: Number
    book: Book


class _Tasks(msgspec.Struct):
    tasks: dict[Task, TaskBook]


class _Hour(msgspec.Struct):
    number: Span
    fields: dict[Minute, Tally]


class _Load(msgspec.Struct):
    number: Span
    fields: dict[Minute, Load]


class _Day(msgspec.Struct):
    number: Span
    fields: dict[Task, Tally]


class _Part(msgspec.Struct):
    part: str = ""


FORMS: dict[str, Any] = {
    "file": _File,
    "state": _State,
    "revision": _Revision,
    "audit": _Audit,
    "book": _Book,
    "tasks": _Tasks,
    "hour": _Hour,
    "load": _Load,
    "day": _Day,
}
"""The parts that a restoration reads; others are for people and for later versions."""

ONLY_ONE = ("file", "state", "book", "tasks")
STATISTICS = ("book", "tasks", "hour", "load", "day")


def read(text: bytes) -> tuple[str, Record]:
    """Return the part that a line belongs to, and what it says.

    :raises ValueError: if it is not of the form of its part; the text says where
    """
    try:
        line = msgspec.json.decode(text, type=Record)
        _check_depth(line)
        part = msgspec.json.decode(text, type=_Part).part
        form = FORMS.get(part)
        if form is not None:
            _check(part, msgspec.json.decode(text, type=form), line)
    except RecursionError:
        raise ValueError("its values lie too deep in one another") from None
    except msgspec.MsgspecError as wrong:
        raise ValueError(str(wrong)) from None
    line.pop("part", None)
    return part, line


def head(text: bytes) -> None:
    """:raises ValueError: if it cannot be the first line of a backup"""
    try:
        msgspec.json.decode(text, type=Head)
    except RecursionError:
        raise ValueError("its values lie too deep in one another") from None
    except msgspec.MsgspecError as wrong:
        raise ValueError(str(wrong)) from None


def _check(part: str, formed: Any, line: Record) -> None:
    if part in ("state", "revision") and not leads_to_marks(line["live"], line.get("hidden", [])):
        raise ValueError("what it says of hidden values does not fit its values")
    if part in STATISTICS:
        _check_numbers(line)
    tallies = formed.fields.values() if part in ("hour", "day") else ()
    for tally in (formed.book.total,) if part == "book" else tallies:
        if any(not 0 <= bucket < len(ENDS_MS) for each in (tally.waits, tally.holds) for bucket in each.buckets):
            raise ValueError("it counts durations that there are not")
    if part == "book" and not re.fullmatch("[A-Za-z]{0,1000}", formed.book.recent):
        raise ValueError("its last outcomes are none")


def _check_depth(line: Record) -> None:
    level: list[Any] = [line]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise ValueError("its values lie too deep in one another")


def _check_numbers(line: Record) -> None:
    waiting: list[Any] = [line]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int | float) and not 0 <= value <= LATEST_MS:
            raise ValueError(f"the number {value!r} is no count and no moment")
        waiting.extend(_inside(value))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
