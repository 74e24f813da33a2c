"""A waiter that leaves the queue and comes back under another id keeps its place: once, and by the ledger's record."""

from __future__ import annotations

from tests.lua.both import Both, on

ZERO = on("gpu_lock:0")


def test_who_comes_back_has_its_place_and_the_time_it_waited(two_cards: Both) -> None:
    """A task that gives its worker back meanwhile must not begin its wait anew each time."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "early", ZERO)
    both.pass_time(1_000)
    both.request("c", "late", ZERO)
    assert both.end("b", "early", None, "parked") == ("ended", "parked")
    both.pass_time(1_000)
    assert both.request("a", "again", ZERO, parked="early")[:3] == ("waiting", 1, 2)
    both.end("a", "held", both.token("held"))
    assert (both.state("again"), both.state("late")) == ("claim", "waiting")
    assert both.model.tickets["again"].stamp < both.model.tickets["late"].stamp


def test_who_is_away_is_granted_nothing(two_cards: Both) -> None:
    """A gpu that waits for nobody would be a gpu lost."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "early", ZERO)
    both.request("c", "late", ZERO)
    both.end("b", "early", None, "parked")
    both.end("a", "held", both.token("held"))
    assert (both.state("early"), both.state("late")) == ("ended: parked", "claim")


def test_a_place_serves_one_ticket(two_cards: Both) -> None:
    """A task that was delivered twice has one place, and one old place brings no crowd to the front."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "early", ZERO)
    both.pass_time(1_000)
    both.request("c", "late", ZERO)
    both.end("b", "early", None, "parked")
    assert both.request("b", "again", ZERO, parked="early")[1] == 1
    assert both.request("c", "twice", ZERO, parked="early")[1] == 3
    assert both.request("b", "again", ZERO, parked="early")[1] == 1  # the same request, its answer lost


def test_who_only_looks_keeps_its_place(two_cards: Both) -> None:
    """Busy is no answer that a place should be lost by."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "early", ZERO)
    both.end("b", "early", None, "parked")
    assert both.request("b", "look", ZERO, wait=False, parked="early") == ("busy",)
    both.request("c", "late", ZERO)
    assert both.request("b", "again", ZERO, parked="early")[1] == 1


def test_a_name_that_the_ledger_does_not_know_gives_no_place(two_cards: Both) -> None:
    """Nobody lies himself to the front: the stamp is the ledger's record, not the caller's word."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "early", ZERO)
    both.request("c", "left", ZERO)
    both.end("c", "left", None, "abandoned")
    for n, parked in enumerate(("early", "left", "held", "1", "never")):
        both.pass_time(10)
        assert both.request("c", f"c{n}", ZERO, parked=parked)[1] == 2 + n


def test_a_claim_that_comes_while_its_waiter_leaves_goes_on_and_the_place_is_kept(two_cards: Both) -> None:
    """The doorbell may ring in the moment in which the waiter gives its worker back."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "early", ZERO)
    both.pass_time(1_000)
    both.request("c", "late", ZERO)
    both.end("a", "held", both.token("held"))
    assert both.state("early") == "claim"
    both.end("b", "early", None, "parked")
    assert both.state("late") == "claim"
    both.confirm("c", "late", both.token("late"))
    both.request("a", "last", ZERO)
    assert both.request("b", "again", ZERO, parked="early")[1] == 1


def test_a_lease_that_is_held_parks_nothing(two_cards: Both) -> None:
    """Who was granted the gpus has had its turn."""
    both = two_cards
    both.request("b", "held", ZERO)
    both.end("b", "held", both.token("held"), "parked")
    both.request("a", "other", ZERO)
    both.request("c", "late", ZERO)
    assert both.request("b", "again", ZERO, parked="held")[1] == 2
