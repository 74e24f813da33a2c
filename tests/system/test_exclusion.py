"""Many processes on few gpus, and nothing breaks: never two in a body, in order, and no gpu idles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.pools import CALM, GIB, offer, simulated, snapshot
from tests.servers import Server, wipe
from tests.states import until_blocking
from tests.system.history import (
    Note,
    Ticket,
    granted_twice,
    idle_gpus,
    inversions,
    overlaps,
    read_events,
    tickets_of,
    token_breaks,
    troubles,
)
from tests.system.witness import CARD_GIB
from tests.system.workers_started import SOAK, Crew

PROCESSES = 8
ROUNDS = 200 if SOAK else 25


class Crowd:
    """What eight processes did that all wanted any one gpu."""

    def __init__(self, gpus: list[str], notes: list[Note], tickets: list[Ticket], counters: dict[str, int]) -> None:
        self.gpus = gpus
        self.notes = notes
        self.tickets = tickets
        self.counters = counters


@pytest.fixture(scope="module", params=[1, 4], ids=["1 gpu", "4 gpus"])
def crowd(
    request: pytest.FixtureRequest, valkey_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Crowd]:
    """Eight processes with 25 acquisitions each (200 in a soak), under times that let nobody be passed over."""
    pool, count = f"crowd-{request.param}", request.param
    offer(valkey_server, pool, simulated(count, memory_mib=CARD_GIB * GIB), session=CALM)
    with Crew(tmp_path_factory.mktemp("crowd"), valkey_server.url, pool, CALM) as crew:
        names = [f"w{n}" for n in range(PROCESSES)]
        for worker in crew.start("loop", *names, rounds=ROUNDS, hold_s=[0.0, 0.01]):
            worker.finish(300 if SOAK else 60)
        notes = crew.notes()
    tickets = tickets_of(read_events(valkey_server, pool))
    counters = snapshot(valkey_server, pool).counters
    yield Crowd([f"gpu_lock:{n}" for n in range(count)], notes, tickets, counters)
    wipe(valkey_server, pool)


def test_never_two_are_in_the_body(crowd: Crowd) -> None:
    """Invariant 1, judged by the kernel."""
    assert not troubles(crowd.notes)
    assert len([note for note in crowd.notes if note.what == "used"]) == PROCESSES * ROUNDS
    assert not token_breaks(crowd.notes)


def test_equal_wants_are_granted_in_the_order_they_came(crowd: Crowd) -> None:
    """Invariants 3 and 4, over what the pool itself wrote down."""
    assert len([ticket for ticket in crowd.tickets if ticket.granted]) == PROCESSES * ROUNDS
    assert not granted_twice(crowd.tickets)
    assert not inversions(crowd.tickets)
    assert len([t for t in crowd.tickets if (t.granted[0].waited_ms or 0) > 0]) > 0, "nobody had to wait"


def test_nobody_waits_while_a_gpu_is_free(crowd: Crowd) -> None:
    """Invariant 5: what frees a gpu hands it on in the same step."""
    assert crowd.counters.get("claim_lapsed", 0) == 0
    assert not idle_gpus(crowd.tickets, crowd.gpus, tolerance_ms=PROCESSES)


def test_the_witness_sees_a_lock_that_locks_nothing(valkey_server: Server, pool: str, tmp_path: Path) -> None:
    """A check that cannot fail is none: with GPULOCKD_DISABLE=1 the same workers do overlap."""
    with Crew(tmp_path, valkey_server.url, pool, GPULOCKD_DISABLE="1") as crew:
        crew.start("loop", "a", "b", hold_s=[0.005, 0.01])
        until_blocking(lambda: overlaps(crew.notes()) and token_breaks(crew.notes()))
    with redis.Redis.from_url(valkey_server.url) as store:
        assert not list(store.scan_iter(match=f"gpulockd:{{{pool}}}:*"))
