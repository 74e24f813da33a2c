"""Who may confirm a claim: a mutant that let anybody do it with the right number went unseen (docs/mutation.md)."""

from __future__ import annotations

import pytest

from gpulockd.ledger.verbs import BroughtLease
from tests.lua.both import Both, on
from tests.lua.test_ledger_directed import brought_lease

ZERO = on("gpu_lock:0")


def test_a_claim_is_confirmed_by_its_own_session_and_token_only(two_cards: Both) -> None:
    """The doorbell may be heard by others, and a number of a moment ago may be said again."""
    two_cards.request("a", "held", ZERO)
    two_cards.request("b", "next", ZERO)
    two_cards.end("a", "held", two_cards.token("held"))
    token = two_cards.token("next")
    two_cards.confirm("c", "next", token)
    two_cards.confirm("b", "next", token - 1)
    two_cards.confirm("b", "next", token)


def test_who_waits_again_confirms_nothing(two_cards: Both) -> None:
    """A claim that has lapsed is a place in the queue; the number of its grant opens nothing."""
    two_cards.request("a", "held", ZERO)
    two_cards.request("b", "next", ZERO)
    two_cards.end("a", "held", two_cards.token("held"))
    token = two_cards.token("next")
    two_cards.live_on(4_000, "acd")
    two_cards.confirm("b", "next", token)
    two_cards.confirm("b", "held", token)


def _superseded(both: Both, state: str) -> tuple[int, BroughtLease]:
    """ "a" was granted `late` and never read it; "b" got the gpu after it; the store that knew of b is gone.

    Returns the token of `late`, and what "b" remembers of its lease.
    """
    if state == "claim":
        both.request("c", "first", ZERO)
    both.request("a", "late", ZERO)
    if state == "claim":
        both.end("c", "first", both.token("first"))
    assert both.state("late") == state
    token, replica = both.token("late"), both.remember()
    both.end("", "late", None, "revoked")
    both.request("b", "body", ZERO)
    held = brought_lease(both, "body")
    both.fail_over(replica)
    assert both.state("late") == state
    return token, held


@pytest.mark.parametrize("state", ["held", "claim"])
@pytest.mark.parametrize("asks", ["confirm", "request"])
def test_a_grant_of_before_the_store_changed_does_not_begin_while_somebody_unknown_may_hold(
    two_cards: Both, state: str, asks: str
) -> None:
    """The store forgot that another has had the gpu since: its body runs, and it has not spoken yet."""
    both = two_cards
    token, held = _superseded(both, state)
    if asks == "confirm":
        assert both.confirm("a", "late", token)[0] == "frozen"
    else:
        assert both.request("a", "late", ZERO)[0] == "waiting"
    assert both.open("b", leases=[held]) == ("opened", "frozen", ())
    assert both.state("body") == "held" and both.token("body") == held.token
    assert both.state("late") in ("ended: overruled", "waiting", "away")


@pytest.mark.parametrize("state", ["held", "claim"])
@pytest.mark.parametrize("asks", ["confirm", "request"])
def test_it_begins_after_the_freeze_under_a_token_that_grows(two_cards: Both, state: str, asks: str) -> None:
    """Who checks tokens would refuse one that is lower than what it has seen."""
    both = two_cards
    token, held = _superseded(both, state)
    if asks == "confirm":
        both.confirm("a", "late", token)
    both.live_on(25_000, "acd")
    if both.state("late") == "held" and asks == "confirm":
        assert both.confirm("a", "late", token)[:2] == ("granted", both.token("late"))
        assert both.confirm("a", "late", token) == ("lapsed",)
    answer = both.request("a", "late", ZERO)
    assert answer[0] == "granted" and answer[1] == both.token("late") > held.token
    assert both.request("a", "late", ZERO)[:2] == answer[:2]


@pytest.mark.parametrize("asks", ["confirm", "request"])
def test_it_begins_in_the_very_moment_in_which_another_lease_ends(two_cards: Both, asks: str) -> None:
    """What is due goes first in every script, so the same one frees a gpu and gives the new token."""
    both = two_cards
    token, _ = _superseded(both, "held")
    both.confirm("a", "late", token)
    both.live_on(25_000, "acd")
    both.request("c", "short", on("gpu_lock:1"), lock_timeout_ms=5_000)
    both.pass_time(2_900)
    both.keepalive("a", [])
    both.pass_time(2_900)
    answer = both.confirm("a", "late", token) if asks == "confirm" else both.request("a", "late", ZERO)
    assert answer[:2] == ("granted", both.token("late")) and both.state("short") == "ended: expired"
