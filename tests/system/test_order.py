"""Who waits is served by priority and then by arrival, whichever process it is in."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from gpulockd.settings import SessionBlock
from tests.pools import GIB, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until_blocking
from tests.system.history import read_events, troubles
from tests.system.witness import CARD_GIB
from tests.system.workers_started import Crew, queued

PLACES = 60


def test_a_queue_is_served_by_priority_then_by_arrival(server: Server, pool: str, tmp_path: Path) -> None:
    """Invariant 4, over three processes: one point of priority is worth a minute of waiting here."""
    offer(server, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=SessionBlock())
    with Crew(tmp_path, server.url, pool, SessionBlock()) as crew:
        holder, *others = crew.obedient("holder", "a", "b", "c")
        holder.ask("0")
        holder.wait_for("use", "0")
        came: list[tuple[int, int]] = []
        for place in range(PLACES):
            priority = crew.random.choice([-1, 0, 0, 1])
            worker = crew.random.choice(others)
            worker.tell("ask", str(place), priority=priority)
            worker.tell("leave", str(place))
            queued(server, pool, place + 1)
            came.append((-priority, place))
        holder.tell("leave", "0")
        until_blocking(lambda: not snapshot(server, pool).queued and not snapshot(server, pool).leases)
        notes = crew.notes()
    assert not troubles(notes)
    served = [int(note.key) for note in notes if note.what == "use" and note.who != "holder"]
    assert served == [place for _, place in sorted(came)]


def _has_asked(server: Server, pool: str, count: int) -> bool:
    """Whether so many have got a place in the queue; one of them leaves it soon."""
    return [event.kind for event in read_events(server, pool)].count("lock_requested") == count


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_a_waiter_that_gives_up_is_not_waited_for(server: Server, pool: str, tmp_path: Path) -> None:
    """Invariant 3: cancelled and timed-out waits leave the queue at once, and the rest keep their order."""
    offer(server, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=SessionBlock())
    with Crew(tmp_path, server.url, pool, SessionBlock()) as crew:
        holder, other = crew.obedient("holder", "other")
        holder.ask("0")
        holder.wait_for("use", "0")
        for place, key in enumerate(["first", "short", "second", "third"], 1):
            other.tell("ask", key, **({"max_wait_time": 0.5} if key == "short" else {}))
            until_blocking(partial(_has_asked, server, pool, place))
        for key in ("first", "third"):
            other.tell("cancel", key)
            other.wait_for("cancelled", key)
        assert re.search(r"any GPU not free after \S+ s: GPU 0 held by", other.wait_for("refused", "short").text)
        queued(server, pool, 1)
        holder.tell("leave", "0")
        other.wait_for("use", "second")
        assert snapshot(server, pool).queued == 0
        other.tell("leave", "second")
        other.wait_for("left", "second")
