"""Who may confirm a claim: a mutant that let anybody do it with the right number went unseen (docs/mutation.md)."""

from __future__ import annotations

from tests.lua.both import Both, on

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
