"""Who took a lease, and what woke a waiter: told in the event of the step that made it so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpulockd.ledger.verbs import EndReason
from tests.lua.both import Both, on

ZERO = on("gpu_lock:0")


def told(both: Both, kind: str) -> list[dict[str, Any]]:
    """The events of that kind, oldest first."""
    rows: Any = both.ledger._client.xrange(both.keys.events_channel)
    events = [json.loads(fields[b"e"]) for _, fields in rows]
    return [event for event in events if event["type"] == kind]


@pytest.mark.parametrize("reason", ["operator", "hard_timeout", "silent", "gpu_lost", "revoked"])
def test_a_lease_that_is_taken_tells_by_whom_and_its_gpu_settles(two_cards: Both, reason: EndReason) -> None:
    """Whoever takes it, the holder may still be on the card, and the one who reads the history asks who it was."""
    two_cards.guard()
    two_cards.request("a", "first", ZERO)
    two_cards.request("a", "next", ZERO)
    two_cards.end("", "first", two_cards.token("first"), reason)
    assert two_cards.state("first") == f"ended: {reason}"
    assert two_cards.state("next") == "waiting"  # the gpu settles
    assert [(event["lease"], event["reason"]) for event in told(two_cards, "lock_revoked")] == [("first", reason)]


@pytest.mark.parametrize(("reason", "kind"), [("expired", "lock_expired"), ("left", "lock_released")])
def test_an_end_that_was_planned_is_told_as_such_and_its_gpu_settles(
    two_cards: Both, reason: EndReason, kind: str
) -> None:
    """Nobody has died; yet nobody knows what the user of a ttl, or of a connection that is gone, still does."""
    two_cards.guard()
    two_cards.request("a", "first", ZERO)
    two_cards.request("a", "next", ZERO)
    two_cards.end("a", "first", two_cards.token("first"), reason)
    assert two_cards.state("next") == "waiting"  # the gpu settles
    found = [(event["lease"], event["reason"], event.get("planned")) for event in told(two_cards, kind)]
    assert found == [("first", reason, True if reason == "expired" else None)]


def test_a_grant_tells_what_woke_its_waiter(two_cards: Both) -> None:
    """Many that had to ask again by themselves are a sign of lost doorbells; who never waited woke by nothing."""
    two_cards.request("a", "first", ZERO)
    two_cards.request("a", "rung", ZERO)
    two_cards.end("a", "first", two_cards.token("first"))
    two_cards.confirm("a", "rung", two_cards.token("rung"))
    two_cards.request("a", "asks", ZERO)
    two_cards.unsubscribe("a")
    two_cards.end("a", "rung", two_cards.token("rung"))
    assert two_cards.state("asks") == "away"
    two_cards.request("a", "asks", ZERO)
    assert [(event["lease"], event.get("via")) for event in told(two_cards, "lock_acquired")] == [
        ("first", None),
        ("rung", "doorbell"),
        ("asks", "poll"),
    ]
