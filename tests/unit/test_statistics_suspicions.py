"""Dead locks: what is suspected, and above all what is not."""

from __future__ import annotations

from typing import Literal

import msgspec

from gpulockd.ledger.suspicions import Evidence, Patience, suspicions
from gpulockd.model import Job, Snapshot, TicketRecord, Wants
from tests.unit.test_statistics_forecast import card, pool, ticket

GPU_0, GPU_1 = ("gpu_lock:0",), ("gpu_lock:1",)
LONG_MS = 900_000


def held(
    id: str = "a",
    gpus: tuple[str, ...] = GPU_0,
    *,
    session: str = "",
    heartbeat: Literal["automatic", "manual"] = "automatic",
    heartbeat_age_ms: int | None = None,
    seen_age_ms: int | None = None,
) -> TicketRecord:
    """A lease that is fifteen minutes old."""
    made = ticket(id, gpus=gpus, held_ms=LONG_MS, session=session or id, heartbeat_age_ms=heartbeat_age_ms)
    return msgspec.structs.replace(made, job=Job(task="t", heartbeat=heartbeat), seen_age_ms=seen_age_ms)


def found(snapshot: Snapshot, **seen: Evidence) -> list[tuple[str, str]]:
    """What is suspected of which lease."""
    return [(suspicion.kind, suspicion.lease) for suspicion in suspicions(snapshot, seen)]


def test_a_lease_whose_processes_are_gone_is_suspected_after_a_while() -> None:
    """The guard ends it in milliseconds; one that still stands is a fault."""
    snapshot = pool([card(0)], [held()], [])
    assert found(snapshot, a=Evidence(gone_s=31)) == [("holder_gone", "a")]
    assert found(snapshot, a=Evidence(gone_s=2)) == []


def test_a_card_that_idles_while_others_wait_for_it_is_suspected() -> None:
    """Idle alone is no harm: a holder may read from disk, and nobody wants the card."""
    idle = Evidence(card_idle_s=400)
    assert found(pool([card(0)], [held()], []), a=idle) == []
    assert found(pool([card(0)], [held()], [ticket("b")]), a=idle) == [("idle", "a")]
    assert found(pool([card(0), card(1)], [held()], [ticket("b", Wants(keys=GPU_1))]), a=idle) == []
    assert found(pool([card(0)], [held()], [ticket("b")]), a=Evidence(card_idle_s=20)) == []
    assert found(pool([card(0)], [held()], [ticket("b", state="away")]), a=idle) == []


def test_a_young_lease_on_a_card_that_idled_before_is_not_suspected() -> None:
    """The idling was not its own."""
    young = msgspec.structs.replace(held(), held_ms=1000)
    assert found(pool([card(0)], [young], [ticket("b")]), a=Evidence(card_idle_s=4000)) == []


def test_an_honest_body_that_blocks_is_not_stalled() -> None:
    """Silence with work is work; silence of a task that reports by itself is a stall."""
    snapshot = pool([card(0)], [held(seen_age_ms=LONG_MS)], [])
    assert found(snapshot) == []
    assert found(snapshot, a=Evidence(still_s=3)) == []
    assert found(snapshot, a=Evidence(still_s=500)) == [("stalled", "a")]
    heard = pool([card(0)], [held(seen_age_ms=2000)], [])
    assert found(heard, a=Evidence(still_s=500)) == []
    manual = pool([card(0)], [held(heartbeat="manual", heartbeat_age_ms=LONG_MS, seen_age_ms=2000)], [])
    assert found(manual) == [("stalled", "a")]
    fresh = pool([card(0)], [held(heartbeat="manual", heartbeat_age_ms=2000)], [])
    assert found(fresh, a=Evidence(still_s=500)) == []


def crossed(waited_ms: int, *, other: str = "q") -> Snapshot:
    """Two programs that each hold one card; p waits for the second, `other` for the first."""
    leases = [held("a", GPU_0, session="p"), held("b", GPU_1, session="q")]
    queue = [
        ticket("c", Wants(keys=GPU_1), session="p", waited_ms=waited_ms),
        ticket("d", Wants(keys=GPU_0), session=other, waited_ms=waited_ms),
    ]
    return pool([card(0), card(1)], leases, queue)


def test_holders_that_wait_for_each_other_are_suspected_once_they_have_waited() -> None:
    """The classical dead-lock, which `nested="wait"` allows."""
    assert found(crossed(90_000)) == [("cycle", "a"), ("cycle", "b")]
    assert found(crossed(10_000)) == []


def test_threads_that_compute_while_others_of_their_program_wait_are_no_cycle() -> None:
    """A thread pool that holds one card and waits for another goes on by itself."""
    busy = Evidence(card_idle_s=0)
    assert found(crossed(90_000), a=busy, b=busy) == []


def test_who_waits_for_somebody_that_waits_for_nobody_is_no_cycle() -> None:
    """The chain ends somewhere: it will move."""
    assert found(crossed(90_000, other="stranger")) == []


def test_a_program_that_waits_for_its_own_other_thread_is_no_cycle() -> None:
    """Several threads with `with` are several tickets."""
    snapshot = pool([card(0)], [held("a", session="p")], [ticket("b", session="p", waited_ms=90_000)])
    assert found(snapshot) == []


def test_a_ring_of_three_is_found_and_a_free_card_breaks_it() -> None:
    """Any length, and only while nobody in it can go on."""
    keys = [(f"gpu_lock:{n}",) for n in range(3)]
    leases = [held(f"l{n}", keys[n], session=f"s{n}") for n in range(3)]
    ring = [ticket(f"q{n}", Wants(keys=keys[(n + 1) % 3]), session=f"s{n}", waited_ms=90_000) for n in range(3)]
    cards = [card(n) for n in range(3)]
    assert [kind for kind, _ in found(pool(cards, leases, ring))] == ["cycle"] * 3
    ring[1] = ticket("q1", Wants(), session="s1", waited_ms=90_000)
    assert found(pool([*cards, card(3)], leases, ring)) == []


def test_patience_is_the_pools_own() -> None:
    """Thresholds follow the configuration."""
    snapshot = pool([card(0)], [held()], [])
    seen = {"a": Evidence(gone_s=2)}
    assert [s.kind for s in suspicions(snapshot, seen, Patience(gone_s=1))] == ["holder_gone"]


def test_a_suspicion_says_why_in_words() -> None:
    """An alert carries the sentence."""
    (one,) = suspicions(pool([card(0)], [held()], [ticket("b")]), {"a": Evidence(card_idle_s=400)})
    assert one.why == "its GPU has done nothing for 6:40 while 1 wait"
    assert (one.gpus, one.task, one.waiting) == (GPU_0, "t", 1)
