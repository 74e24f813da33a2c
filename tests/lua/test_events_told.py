"""What the events of a ticket tell, besides what happened."""

from __future__ import annotations

import json
from typing import Any

from tests.lua.both import Both, on

ZERO = on("gpu_lock:0")


def test_every_event_of_a_ticket_names_its_session(two_cards: Both) -> None:
    """A staged rollout counts outcomes by the sessions that go by the candidate."""
    two_cards.open("0123456789abcdef")
    two_cards.request("0123456789abcdef", "first", ZERO)
    two_cards.request("0123456789abcdef", "second", ZERO)
    two_cards.end("0123456789abcdef", "second", reason="timed_out")
    two_cards.request("0123456789abcdef", "third", ZERO)
    two_cards.end("0123456789abcdef", "third", reason="abandoned")
    two_cards.end("0123456789abcdef", "first", two_cards.token("first"))
    rows: Any = two_cards.ledger._client.xrange(two_cards.keys.events_channel)
    events = [json.loads(fields[b"e"]) for _, fields in rows]
    told = {event["type"]: event["session"] for event in events if "lease" in event}
    assert told == dict.fromkeys(
        ("lock_acquired", "lock_requested", "wait_timed_out", "wait_abandoned", "lock_released"), "01234567"
    )
