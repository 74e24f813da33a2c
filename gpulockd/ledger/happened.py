"""The latest events of a pool, read backwards from the end of its stream."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.events import Event, decode
from gpulockd.ledger import answers as a
from gpulockd.ledger import reading
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.lua_files import script
from gpulockd.ledger.recorded import Ask
from gpulockd.ledger.verbs import Call

PAGE = 1000
MOST_EVENTS = 12_000
"""More than the stream of a pool has."""


class Happened(a.Answer, frozen=True, kw_only=True):
    """A page of events as JSON, the latest first. `dropped`: how many the stream no longer has."""

    wall_ms: int
    dropped: int
    events: tuple[bytes, ...]


class Lately(msgspec.Struct, frozen=True, kw_only=True):
    """The events since a moment, oldest first. `from_ms`: since when they are all of them (wall clock)."""

    from_ms: int
    wall_ms: int
    events: tuple[Event, ...]


def happened(keys: PoolKeys, *, before: int | None, page: int = PAGE) -> Call[Happened | a.Unopened]:
    """Read the events before a seq (None: from the latest on), at most a page of 1000."""
    return Call(script("happened"), keys, ("", "" if before is None else str(before), str(page)), _happened)


async def lately(ask: Ask, keys: PoolKeys, *, since_ms: int, most: int = MOST_EVENTS) -> Lately:
    """Read the events since a moment (wall clock), as far as the stream reaches back.

    :param most: read no more than about so many; `from_ms` says how far they reach
    :raises StoreUnavailable: if the store is away
    """
    newest_first: list[Event] = []
    before: int | None = None
    wall_ms: int | None = None
    while True:
        page = await ask(happened(keys, before=before))
        if not isinstance(page, Happened):
            return Lately(from_ms=since_ms, wall_ms=0, events=())
        wall_ms = page.wall_ms if wall_ms is None else wall_ms
        known = [event for event in map(decode, page.events) if event is not None]
        newest_first += [event for event in known if event.at_ms >= since_ms]
        if any(event.at_ms < since_ms for event in known):
            return _lately(since_ms, wall_ms, newest_first)
        over = len(page.events) < PAGE or not known
        if over or len(newest_first) >= most:
            whole = over and page.dropped == 0
            reach_ms = since_ms if whole else newest_first[-1].at_ms if newest_first else wall_ms
            return _lately(reach_ms, wall_ms, newest_first)
        before = known[-1].seq


def _lately(from_ms: int, wall_ms: int, newest_first: list[Event]) -> Lately:
    return Lately(from_ms=from_ms, wall_ms=wall_ms, events=tuple(reversed(newest_first)))


def _happened(reply: list[Any]) -> Happened | a.Unopened:
    if reply[0] == b"unopened":
        return a.NO_BOOKS
    clock, now_ms = reading._terms(reply)
    return Happened(clock=clock, now_ms=now_ms, wall_ms=int(reply[6]), dropped=int(reply[7]), events=tuple(reply[8]))
