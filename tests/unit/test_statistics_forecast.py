"""Forecasts: when a lease may end, and when a place in the queue may come."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpulockd.ledger.forecast import FEWEST_HOLDS, Expected, expected_end, expected_starts
from gpulockd.model import Gpu, GpuRecord, Job, Snapshot, TicketRecord, Wants

ANY = Wants()


def card(index: int, **fields: Any) -> GpuRecord:
    """An offered gpu of 24 GiB."""
    gpu = Gpu(key=f"gpu_lock:{index}", index=index, uuid=f"GPU-{index}", name="Test", memory_mib=24_576)
    plain = {"state": "ready", "offered": True, "exclusive": None, "shared": 0, "used_mib": 0}
    return GpuRecord(gpu=gpu, **{**plain, **fields})


def ticket(id: str, wants: Wants = ANY, *, task: str = "t", **fields: Any) -> TicketRecord:
    """A ticket in the queue; with gpus, a lease."""
    plain = {"state": "held" if fields.get("gpus") else "waiting", "session": id, "priority": 0, "process": None}
    return TicketRecord(id=id, wants=wants.text, job=Job(task=task), **{**plain, "waited_ms": 0, **fields})


def pool(cards: list[GpuRecord], leases: list[TicketRecord], queue: list[TicketRecord], **fields: Any) -> Snapshot:
    """A pool with these cards, leases and places."""
    plain = {"epoch": "e", "at_ms": 0, "token": 1, "offered": True, "guarded": False, "boot_id": "b", "host": "h"}
    plain |= {"frozen_ms": 0, "frozen_why": "", "queued": len(queue), "sessions": 1, "next_due_ms": None}
    return Snapshot(
        pool="p", gpus=tuple(cards), leases=tuple(leases), queue=tuple(queue), counters={}, **{**plain, **fields}
    )


def starts_s(snapshot: Snapshot, holds: dict[str, list[int]]) -> dict[str, float | None]:
    """The middle of each forecast (in seconds)."""
    return {id: found.middle_s if found else None for id, found in expected_starts(snapshot, holds).items()}


def test_a_lease_is_expected_to_end_like_those_that_lasted_as_long() -> None:
    """What ended earlier says nothing of one that is still held."""
    holds = [1000, 2000, 10_000, 20_000, 30_000, 40_000]
    assert expected_end(holds, 0) == Expected(early_s=2, middle_s=10, late_s=30)
    assert expected_end(holds, 5000) == Expected(early_s=5, middle_s=15, late_s=25)


def test_what_is_not_known_is_not_guessed() -> None:
    """A made-up time is worse than none."""
    assert expected_end([], 0) is None
    assert expected_end([5000] * (FEWEST_HOLDS - 1), 0) is None
    assert expected_end([5000] * 9, 5000) is None


@given(st.lists(st.integers(0, 10**7), min_size=FEWEST_HOLDS, max_size=32), st.integers(0, 10**7))
def test_an_expected_end_is_ahead_and_its_spread_is_in_order(holds: list[int], age_ms: int) -> None:
    """A page can draw it without looking."""
    found = expected_end(holds, age_ms)
    if found is not None:
        assert 0 < found.early_s <= found.middle_s <= found.late_s
        assert found.late_s <= (max(holds) - age_ms) / 1000


def test_places_of_one_gpu_begin_one_after_the_other() -> None:
    """The plain case: my turn is when all before me have had theirs."""
    lease = ticket("a", gpus=("gpu_lock:0",), held_ms=4000)
    snapshot = pool([card(0)], [lease], [ticket("b"), ticket("c", task="long"), ticket("d")])
    holds = {"t": [10_000] * 5, "long": [60_000] * 5}
    assert starts_s(snapshot, holds) == {"b": 6, "c": 16, "d": 76}


def test_two_gpus_serve_one_queue() -> None:
    """Whichever is free first is taken."""
    leases = [ticket("a", gpus=("gpu_lock:0",)), ticket("b", task="long", gpus=("gpu_lock:1",))]
    snapshot = pool([card(0), card(1)], leases, [ticket(name) for name in "cde"])
    assert starts_s(snapshot, {"t": [10_000] * 5, "long": [25_000] * 5}) == {"c": 10, "d": 20, "e": 25}


def test_who_depends_on_an_unknown_task_has_no_time() -> None:
    """And who does not, has."""
    leases = [ticket("a", task="new", gpus=("gpu_lock:0",)), ticket("b", gpus=("gpu_lock:1",))]
    queue = [ticket("c", task="new"), ticket("d", Wants(keys=("gpu_lock:0",))), ticket("e")]
    snapshot = pool([card(0), card(1)], leases, queue)
    assert starts_s(snapshot, {"t": [10_000] * 5}) == {"c": 10, "d": None, "e": None}


def test_several_gpus_are_had_together_and_kept_for_who_has_waited_long() -> None:
    """A pair begins when both are free; later ones may pass only while it is young."""
    leases = [ticket("a", gpus=("gpu_lock:0",)), ticket("b", task="long", gpus=("gpu_lock:1",))]
    holds = {"t": [10_000] * 5, "long": [30_000] * 5}
    young = [ticket("pair", Wants(count=2)), ticket("c")]
    old = [ticket("pair", Wants(count=2), waited_ms=90_000), ticket("c")]
    assert starts_s(pool([card(0), card(1)], leases, young), holds) == {"pair": 30, "c": 10}
    assert starts_s(pool([card(0), card(1)], leases, old), holds) == {"pair": 30, "c": 40}


def test_budgets_share_a_card_within_its_memory() -> None:
    """A small budget begins beside others; a whole card waits for all of them."""
    small, large = Wants(memory_mib=8192, exclusive=False), Wants(memory_mib=16_384, exclusive=False)
    lease = ticket("a", small, gpus=("gpu_lock:0",))
    snapshot = pool([card(0, shared=1, used_mib=8192)], [lease], [ticket("b", large), ticket("c", small), ticket("d")])
    assert starts_s(snapshot, {"t": [10_000] * 5}) == {"b": 0, "c": 10, "d": 20}


def test_cards_that_are_not_in_use_and_programs_that_are_away_count_for_nothing() -> None:
    """A drained card takes nobody, and an away ticket does not begin."""
    queue = [ticket("a", state="away"), ticket("b"), ticket("c", Wants(keys=("gpu_lock:0",)))]
    snapshot = pool([card(0, state="drained"), card(1)], [], queue)
    assert starts_s(snapshot, {"t": [10_000] * 5}) == {"a": None, "b": 0, "c": None}


def test_nothing_begins_while_the_pool_is_frozen() -> None:
    """The thaw is the earliest moment."""
    assert starts_s(pool([card(0)], [], [ticket("a")], frozen_ms=3000), {}) == {"a": 3}


def test_a_keyed_slot_without_hardware_is_forecast_too() -> None:
    """`gpu_lock:ocr` has a queue like a card."""
    slot = Wants(keys=("gpu_lock:ocr",))
    lease = ticket("a", slot, gpus=("gpu_lock:ocr",))
    record = GpuRecord(gpu=Gpu(key="gpu_lock:ocr"), state="ready", offered=False, exclusive="a", shared=0, used_mib=0)
    snapshot = pool([record], [lease], [ticket("b", slot), ticket("c", Wants(keys=("gpu_lock:other",)))])
    assert starts_s(snapshot, {"t": [10_000] * 5}) == {"b": 10, "c": 0}


def test_every_place_of_a_full_page_of_the_queue_is_forecast() -> None:
    """All wants mixed, and every holder known: nobody is forgotten, and each begins after now."""
    kinds = [ANY, Wants(count=2), Wants(keys=("gpu_lock:3",)), Wants(memory_mib=8192, exclusive=False)]
    queue = [ticket(f"q{n}", kinds[n % 4], task=f"t{n % 7}", waited_ms=1000 * (256 - n)) for n in range(256)]
    cards = [card(n) for n in range(8)]
    leases = [ticket(f"l{n}", task="t0", gpus=(f"gpu_lock:{n}",)) for n in range(8)]
    holds = {f"t{n}": [10_000 + 700 * n + 13 * i for i in range(32)] for n in range(7)}
    found = expected_starts(pool(cards, leases, queue), holds)
    assert len(found) == 256
    assert all(start is not None and start.early_s > 0 for start in found.values())
