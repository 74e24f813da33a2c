"""What moves a lease's own end, and what a keepalive tells: found by the simulator, where programs stand still."""

from __future__ import annotations

from tests.lua.both import Both, on

ZERO = on("gpu_lock:0")
SHORT_MS = 12_000


def live_without_saying_what_is_held(both: Both, ms: int) -> None:
    """Time in which a process says that it lives, and does not know yet what it was granted."""
    for _ in range(ms // 2_000):
        both.pass_time(2_000)
        for session in "abcd":
            both.keepalive(session, [])


def test_who_confirms_what_it_holds_begins_with_its_whole_lock_timeout(two_cards: Both) -> None:
    """A process that stood still with its grant unread asks before it begins: it would begin a lease about to end."""
    both = two_cards
    both.request("a", "held", ZERO, lock_timeout_ms=SHORT_MS)
    live_without_saying_what_is_held(both, SHORT_MS - 2_000)
    assert both.confirm("a", "held", both.token("held"))[0] == "granted"
    live_without_saying_what_is_held(both, SHORT_MS - 2_000)
    assert both.state("held") == "held"
    live_without_saying_what_is_held(both, 2_000)
    assert both.confirm("a", "held", both.model.token) == ("gone", "expired")


def test_who_repeats_its_request_begins_with_its_whole_lock_timeout(two_cards: Both) -> None:
    """The reply was lost; the repeated request answers the same lease, and its process begins only now."""
    both = two_cards
    both.request("a", "held", ZERO, lock_timeout_ms=SHORT_MS)
    live_without_saying_what_is_held(both, SHORT_MS - 2_000)
    assert both.request("a", "held", ZERO, lock_timeout_ms=SHORT_MS)[0] == "granted"
    live_without_saying_what_is_held(both, SHORT_MS - 2_000)
    assert both.state("held") == "held"


def test_who_joins_again_moves_the_end_of_the_lease(two_cards: Both) -> None:
    """A member begins its body late in the same way, and lives by the lease's own end."""
    both = two_cards
    both.request("a", "held", ZERO, lock_timeout_ms=SHORT_MS)
    inside = ("held", both.token("held"))
    both.request("b", "joined", ZERO, inside=inside)
    live_without_saying_what_is_held(both, SHORT_MS - 2_000)
    assert both.request("b", "joined", ZERO, inside=inside)[0] == "joined"
    live_without_saying_what_is_held(both, SHORT_MS - 2_000)
    assert both.confirm("b", "joined", both.token("joined"))[0] == "granted"
    live_without_saying_what_is_held(both, SHORT_MS - 2_000)
    assert both.state("held") == "held"


def test_a_stranger_and_a_stale_token_move_no_end(two_cards: Both) -> None:
    """Only the holder's own question says that it is about to begin."""
    both = two_cards
    both.request("a", "held", ZERO, lock_timeout_ms=SHORT_MS)
    live_without_saying_what_is_held(both, SHORT_MS - 2_000)
    both.confirm("b", "held", both.token("held"))
    both.confirm("a", "held", both.token("held") - 1)
    both.request("b", "held", ZERO)
    live_without_saying_what_is_held(both, 2_000)
    assert both.confirm("a", "held", both.model.token) == ("gone", "expired")


def test_a_keepalive_tells_who_is_asked_to_stop(two_cards: Both) -> None:
    """The ring may be lost, and anybody may ring: the ledger's answer is what counts, for members too."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.request("b", "joined", ZERO, inside=("held", both.token("held")))
    both.request("a", "other", on("gpu_lock:1"))
    assert [both.keepalive(session)[-1] for session in "ab"] == [frozenset(), frozenset()]
    both.reach("held", both.token("held"), "warning")
    assert [both.keepalive(session)[-1] for session in "ab"] == [frozenset(), frozenset()]
    both.reach("held", both.token("held"), "soft")
    assert [both.keepalive(session)[-1] for session in "ab"] == [frozenset(), frozenset()]
    both.reach("held", both.token("held"), "operator", stop=True)
    assert [both.keepalive(session)[-1] for session in "ab"] == [frozenset({"held"}), frozenset({"joined"})]
