"""What a waiting request is told of its place: who is in the way, and when it may begin."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from gpulockd.client.refusals import in_the_way
from gpulockd.client.waiting import Waiting
from gpulockd.errors import StoreUnavailable
from gpulockd.model import Wants
from gpulockd.units import format_duration
from gpulockd.web.backend import Backend
from gpulockd.web.streams import Write, as_line
from gpulockd.web.wanting import WaitingLine

PING_S = 5.0
GATHER_S = 0.1


async def tell_place(backend: Backend, waiting: Callable[[], Waiting | None], wants: Wants, write: Write) -> None:
    """Say the place and who is in the way until cancelled: when it changes, and every 5 s.

    :param waiting: the wait, None while there is none yet
    """
    feed = backend.feed
    said: tuple[object, ...] = ()
    said_at = 0.0
    await anyio.sleep(GATHER_S)
    while True:
        seen, asked = feed.last, waiting()
        id, usual = (asked.entry.id, asked.place) if asked is not None else ("", None)
        line, facts = await place_of(backend, id, usual, wants)
        if facts != said or anyio.current_time() - said_at >= PING_S - GATHER_S:
            said, said_at = facts, anyio.current_time()
            await write(as_line(line))
        with anyio.move_on_after(max(GATHER_S, said_at + PING_S - anyio.current_time())):
            await feed.changed(seen)
        await anyio.sleep(GATHER_S)


async def place_of(
    backend: Backend, id: str, usual_place: int | None, wants: Wants
) -> tuple[WaitingLine, tuple[object, ...]]:
    """Return the line to say, and what of it counts as a change.

    :param id: of the ticket, empty while there is none
    :param usual_place: the place that the ledger has last told, for a ticket that is far behind
    """
    try:
        snapshot = await backend.picture()
        hold_back_s = backend.settings.queue.hold_back_after
        ends_ms, recent = backend.planned_ends_ms(), backend.holds_ms
        expected = await backend.forecast.of(id, snapshot, hold_back_s, recent, ends_ms) if id else None
    except StoreUnavailable:
        text = "the store does not answer; waiting for it"
        return WaitingLine(place=None, queued=None, text=text), (text,)
    place = next((ticket.place for ticket in snapshot.queue if ticket.id == id), usual_place)
    words = [f"place {place} of {snapshot.queued}" if place is not None else "taking a place"]
    if snapshot.frozen_ms > 0:
        words.append(f"the pool grants nothing for {format_duration(snapshot.frozen_ms / 1000)} more")
    elif expected is not None:
        words.append(f"its turn in about {format_duration(expected.middle_s)}")
    words += in_the_way(snapshot, wants)[:3]
    line = WaitingLine(place=place, queued=snapshot.queued, text="; ".join(words), expected_start=expected)
    # The forecast changes with every second, so it is told with what else changes.
    known = expected is not None
    return line, (place, snapshot.queued, snapshot.frozen_ms > 0, known, *(lease.id for lease in snapshot.leases))
