"""What the ledger promises with a guard: who may say that all is known, who is waited for, what settles.

Each call is compared with the model, as in test_ledger_directed.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpulockd.ledger import verbs
from gpulockd.ledger.answers import Pictured
from gpulockd.ledger.verbs import EndReason
from gpulockd.model import Job, Wants
from tests.lua.both import LOCK_TIMEOUT_MS, TERMS, Both, Disagreement, card, on
from tests.lua.test_ledger_directed import brought_lease, brought_ticket

ZERO, ONE = on("gpu_lock:0"), on("gpu_lock:1")


@pytest.fixture
def guarded(both: Both) -> Both:
    """Two cards behind a guard; processes a, b and c listen, d is the daemon."""
    both.stage()
    both.guard()
    return both


def lose(both: Both, id: str, wants: Wants = ZERO, session: str = "a") -> None:
    """A lease that is revoked: what it leaves on the gpu must settle."""
    both.request(session, id, wants)
    both.end("", id, both.token(id), "revoked")


def state_of(both: Both, index: int) -> str:
    return both.model.cards[f"gpu_lock:{index}"].state


# Guarded is a fact of the pool, as long as the guard's session lives


@pytest.mark.parametrize("reason", ["released", "died"])
def test_a_pool_is_unguarded_when_its_guard_has_signed_off_or_died(guarded: Both, reason: EndReason) -> None:
    """Clients would ask at a door behind which nobody is; every answer tells them."""
    both = guarded
    assert both.model.guarded
    both.end("", "d", reason=reason, what="session")
    assert not both.model.guarded
    assert both.request("a", "held", ZERO)[0] == "granted"


def test_a_pool_is_unguarded_when_its_guard_goes_silent(guarded: Both) -> None:
    """A guard that is killed signs nothing."""
    guarded.live_on(25_000, "abc")
    assert not guarded.model.guarded


def test_a_session_that_is_not_the_guards_takes_no_guard_with_it(guarded: Both) -> None:
    """Anybody's end would open the fence."""
    guarded.end("", "c", reason="died", what="session")
    assert guarded.model.guarded


# Settling


@pytest.mark.parametrize("reason", ["died", "gpu_lost"])
def test_a_lost_lease_settles_and_the_guards_word_hands_on(guarded: Both, reason: EndReason) -> None:
    """The next one begins on an empty card, and without a wait of its own."""
    both = guarded
    both.request("a", "lost", ZERO)
    both.request("b", "next", ZERO)
    both.end("", "lost", both.token("lost"), reason)
    assert (state_of(both, 0), both.state("next")) == ("settling", "waiting")
    assert both.report("d", "gpu_lock:0", "settled") == ("noted", "settling")
    assert both.state("next") == "claim"


def test_with_settle_always_a_released_lease_settles_too(both: Both) -> None:
    """The strictest policy: nobody begins beside a worker process that another task has left on the card."""
    both.stage()
    both.offer("d", card(0), guarded=True, terms=msgspec.structs.replace(TERMS, settle_policy="always"))
    both.request("a", "held", ZERO)
    both.request("b", "next", ZERO)
    both.end("a", "held", both.token("held"))
    assert both.state("next") == "waiting"
    both.report("d", "gpu_lock:0", "settled")
    assert both.state("next") == "claim"


def test_with_settle_always_a_claim_that_nobody_took_goes_straight_on(both: Both) -> None:
    """Nothing has begun on the gpu; a wait for the guard's word would be for nothing."""
    both.stage()
    both.offer("d", card(0), guarded=True, terms=msgspec.structs.replace(TERMS, settle_policy="always"))
    both.request("a", "held", ZERO)
    both.request("b", "never-comes", ZERO)
    both.request("c", "next", ZERO)
    both.end("a", "held", both.token("held"))
    both.report("d", "gpu_lock:0", "settled")
    both.live_on(3_000, "acd")
    assert (both.state("never-comes"), both.state("next")) == ("away", "claim")


@pytest.mark.parametrize("state", ["drained", "lost"])
def test_a_settled_run_does_not_lift_what_was_said_of_the_gpu_meanwhile(guarded: Both, state: str) -> None:
    """Whoever drained it wants to work on it; what fell off the bus is not there."""
    both = guarded
    lose(both, "lost")
    both.report("d", "gpu_lock:0", state)
    assert both.report("d", "gpu_lock:0", "settled") == ("noted", state)
    assert both.request("b", "next", ZERO)[0] == "waiting"


def test_a_guard_lifts_its_quarantine_when_the_gpu_is_clean(guarded: Both) -> None:
    """A run that took too long to die is no reason for an operator to come."""
    both = guarded
    lose(both, "lost")
    both.request("b", "next", ZERO)
    both.live_on(6_000, "abcd")
    assert (state_of(both, 0), both.state("next")) == ("quarantined", "waiting")
    both.report("d", "gpu_lock:0", "settled")
    assert both.state("next") == "claim"


def test_gpus_go_on_when_the_guard_has_died_among_many(guarded: Both) -> None:
    """Sessions are ended 32 a script: a dead guard that still stands in line lives no longer, and lifts nothing."""
    guard_dies_in_a_crowd(guarded)


def guard_dies_in_a_crowd(both: Both) -> None:
    """The model ends all sessions at once, so from the crowd on only the scripts are asked."""
    for n in range(40):
        both.open(f"a{n:02}")
    both.live_on(15_000)
    lose(both, "lost", session="b")
    both.pass_time(6_000)
    first, second = both.ledger.ask(verbs.snapshot(both.keys)), both.ledger.ask(verbs.snapshot(both.keys))
    assert isinstance(first, Pictured)
    assert isinstance(second, Pictured)
    assert first.snapshot.sessions == 12, "the first script has ended 32"
    assert not second.clock.guarded
    if second.snapshot.gpus[0].state != "ready":
        raise Disagreement(f"nobody is left to lift it: {second.snapshot.gpus[0]}")


# Who offers


def test_a_killed_daemon_comes_back_under_another_session(guarded: Both) -> None:
    """Its session of before would stand in its way for a ttl, in a pool that nobody guards."""
    both = guarded
    both.request("a", "held", ZERO)
    both.open("d2")
    assert both.guard("d2")[0] == "offered"
    assert both.model.guarded
    assert (both.state("held"), both.open("d")) == ("held", ("gone", "died"))


def test_what_a_killed_daemon_held_settles_under_the_next(guarded: Both) -> None:
    """A lock held for another process by the daemon's own session: that process is still on the card."""
    both = guarded
    both.request("d", "for-another", ZERO)
    both.open("d2")
    both.guard("d2")
    assert both.request("a", "next", ZERO)[0] == "waiting"
    both.report("d2", "gpu_lock:0", "settled")
    assert both.state("next") == "claim"


def test_what_ran_before_a_reboot_does_not_settle(guarded: Both) -> None:
    """Nothing of an earlier boot is left on a card."""
    both = guarded
    both.request("a", "before", ZERO)
    both.request("d", "by-the-daemon", ONE)
    for session in ("d2", "n"):
        both.open(session, boot_id="boot-3", machine="machine-1")
    both.offer("d2", card(0), card(1, 48), boot_id="boot-3", guarded=True)
    assert both.request("n", "next", Wants(count=2))[0] == "granted"


def test_a_second_daemon_of_the_host_changes_nothing_while_the_first_one_lives(guarded: Both) -> None:
    """Its guard knows nobody: its word would open a pool in which others hold, and its cards would replace theirs."""
    both = guarded
    both.request("a", "held", ZERO)
    both.open("e")
    both.restart_server()
    before = both.token("held")
    for _ in range(2):
        said = both.offer("e", card(0), guarded=True, knows_all=True, highest_token=before + 10**15, offerer="two")
        assert said == ("elsewhere", "boot-1")
    assert both.request("b", "next", ONE)[3:] == (20_000, "store_changed")
    assert both.model.token < before + 10**15
    both.live_on(20_000, "abce")
    assert both.offer("e", card(0), card(1, 48), offerer="two")[0] == "offered", "the first one has died meanwhile"


def test_tokens_grow_past_all_that_the_guard_has_let_in(guarded: Both) -> None:
    """A store that lost its last writes must not give a token again: the guard would take it for the older one."""
    both = guarded
    ahead = both.model.token + 5_000
    both.offer("d", card(0), guarded=True, highest_token=ahead)
    assert both.request("a", "held", ZERO)[1] == ahead + 1
    both.offer("d", card(0), guarded=True, highest_token=ahead - 5_000)
    both.end("a", "held", ahead + 1)
    assert both.request("a", "later", ZERO)[1] == ahead + 2


# The guard knows


def test_where_the_books_survived_the_guards_word_opens_at_once(guarded: Both) -> None:
    """A restarted store costs a guarded host no wait."""
    both = guarded
    both.request("a", "held", ZERO)
    both.restart_server()
    both.request("b", "next", ONE)
    both.request("c", "after-held", ZERO)
    assert both.guard() == ("offered", "frozen", 20_000)
    assert both.guard(knows_all=True) == ("offered", "known_by_guard", 0)
    assert (both.state("held"), both.state("next"), both.state("after-held")) == ("held", "claim", "waiting")


def test_where_the_books_were_lost_it_opens_after_a_step_with_all_stamps(guarded: Both) -> None:
    """At once, whoever asks first after the loss would pass those who had waited."""
    both = guarded
    both.request("a", "held", ZERO)
    both.request("b", "first", ZERO)
    held, first = brought_lease(both, "held"), brought_ticket(both, "first")
    both.lose_all()
    both.open("d")
    assert both.offer("d", card(0), card(1, 48), guarded=True) == ("offered", "frozen", 20_000)
    both.open("a", leases=[held])
    assert both.guard(knows_all=True) == ("offered", "known_by_guard", 7_000)
    both.open("c")
    both.request("c", "newcomer", ZERO)
    both.pass_time(4_000)
    both.open("b", tickets=[first])
    assert both.guard(knows_all=True)[2] == 3_000, "said again, it makes nothing longer"
    both.pass_time(3_000)
    both.keepalive("a")
    both.end("a", "held", held.token)
    assert (both.state("first"), both.state("newcomer")) == ("claim", "waiting")


def test_what_a_guard_said_to_an_earlier_epoch_does_not_count(guarded: Both) -> None:
    """A failover between the assertions and the word: the new master has forgotten the holder that was asserted."""
    both = guarded
    replica = both.remember()
    both.request("a", "held", ZERO)
    held = brought_lease(both, "held")
    both.restart_server()
    both.guard()
    both.open("a", leases=[held])
    both.fail_over(replica)
    assert both.guard(knows_all=True)[1:] == ("frozen", 20_000)
    assert both.request("b", "next", ZERO)[0] == "waiting"
    assert both.open("a", leases=[held]) == ("opened", "frozen", ())
    assert both.guard(knows_all=True) == ("offered", "known_by_guard", 0)
    assert (both.state("held"), both.state("next")) == ("held", "waiting")


def test_a_guard_that_was_not_there_when_the_store_changed_does_not_know_all(guarded: Both) -> None:
    """While nobody guarded, the ledger alone let in; whom the store has forgotten of those, no guard has seen."""
    both = guarded
    both.end("d", "d", what="session")
    replica = both.remember()
    both.request("a", "unseen", ZERO)
    both.fail_over(replica)
    both.open("d2")
    for _ in range(2):
        assert both.guard("d2", knows_all=True)[1:] == ("frozen", 20_000)
    both.restart_server()
    for _ in range(2):
        assert both.guard("d2", knows_all=True)[1:] == ("frozen", 20_000), "the second change made it no wiser"


def test_a_daemon_that_takes_over_in_a_freeze_keeps_it(guarded: Both) -> None:
    """Its record is read, but it has asserted nothing yet under its own session."""
    both = guarded
    both.restart_server()
    both.open("d2")
    assert both.guard("d2", knows_all=True)[1:] == ("frozen", 20_000)
    assert both.guard("d2", knows_all=True) == ("offered", "known_by_guard", 0)


def test_a_guard_that_cannot_know_all_still_ends_the_wait_for_it(guarded: Both) -> None:
    """It has come, so nobody waits a minute for it; whom it has not seen believes for a ttl."""
    both = guarded
    both.end("d", "d", what="session")
    both.restart_server()
    both.open("a", guard_gone_ms=60_000)
    both.open("d2")
    assert both.guard("d2")[1:] == ("frozen", 60_000)
    assert both.guard("d2", knows_all=True)[1:] == ("frozen", 20_000)


# The guard is waited for


def test_a_pool_whose_guard_was_known_before_the_loss_waits_for_it_once(two_cards: Both) -> None:
    """Holders behind a guard believe for as long as it lives; but a guard that is gone for good ends no pool."""
    both = two_cards
    both.lose_all()
    both.open("a", guard_gone_ms=60_000)
    both.subscribe("a")
    assert both.request("a", "first", ZERO)[3:] == (60_000, "guard_away")
    for _ in range(3):
        both.live_on(10_000, "a")
        both.open("b", guard_gone_ms=60_000)
    assert both.request("b", "next", ZERO)[3:] == (30_000, "guard_away")
    both.live_on(30_000, "ab")
    assert both.state("first") == "claim"


def test_the_guard_that_was_waited_for_ends_the_wait(two_cards: Both) -> None:
    """A minute is for a daemon that is restarted, not for one that is there."""
    both = two_cards
    both.lose_all()
    both.open("a", guard_gone_ms=60_000)
    both.open("d")
    assert both.offer("d", card(0), guarded=True)[2] == 60_000
    assert both.offer("d", card(0), guarded=True, knows_all=True)[2] == 7_000


def test_a_guard_that_has_offered_again_is_not_waited_for(two_cards: Both) -> None:
    """It is there: what it does not know, a ttl tells."""
    both = two_cards
    both.lose_all()
    both.open("d")
    both.offer("d", card(0), guarded=True)
    both.open("a", guard_gone_ms=60_000)
    assert both.request("a", "first", ZERO)[3:] == (20_000, "data_lost")


def test_a_pool_that_is_open_freezes_for_no_guard(two_cards: Both) -> None:
    """A session that comes late may not stop everybody."""
    both = two_cards
    both.open("e", guard_gone_ms=60_000)
    assert both.request("e", "first", ZERO)[0] == "granted"


# A session with more than one script can clear


def test_a_dead_session_with_hundreds_of_waiters_is_cleared_32_a_script(two_cards: Both) -> None:
    """One script must not keep the server for seconds; its lease goes first, and nothing is left in the end."""
    both = two_cards
    both.request("b", "lease", ONE)
    both.request("c", "next", ONE)
    both.request("a", "held", ZERO)
    for n in range(300):
        both.ledger.ask(_waits(both, "b", f"w{n}"))
    dead = verbs.end(both.keys, session="", id="b", token=None, reason="died", what="session")
    both.ledger.ask(dead)
    left = [_tickets_of(both, "b")]
    assert left == [301 - 32]
    assert both.ledger.all_keys()["ticket:next"]["state"] == "claim"  # type: ignore[index] # a hash
    while left[-1]:
        both.ledger.ask(verbs.snapshot(both.keys))
        left.append(_tickets_of(both, "b"))
    assert left == [max(0, 301 - 32 * scripts) for scripts in range(1, 11)]
    found = both.ledger.all_keys()
    assert found["due"].keys() == {"lease:held", "lease:next"}  # type: ignore[union-attr] # a sorted set
    of_b = [name for name in found if name in ("queue", "session:b", "session_tickets:b") or "heads:" in name]
    assert of_b == []
    both.ledger.heard()


def _waits(both: Both, session: str, id: str) -> verbs.Call[Any]:
    return verbs.request(
        both.keys, session=session, id=id, wants=ZERO, priority=0, wait=True, job=Job(task="test"),
        lock_timeout_ms=LOCK_TIMEOUT_MS, asked_ms=None,
    )  # fmt: skip


def _tickets_of(both: Both, session: str) -> int:
    found = both.ledger.all_keys()
    tickets = [value for name, value in found.items() if name.startswith("ticket:") and isinstance(value, dict)]
    return sum(fields["session"] == session for fields in tickets)
