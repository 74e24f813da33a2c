"""What the ledger promises where its books are older than what is true: a store that came back as it was, or keys that
somebody has deleted by hand.

Each call is compared with the model, as in test_ledger_directed.
"""

from __future__ import annotations

import msgspec
import pytest

from gpulockd.ledger.verbs import BroughtLease
from gpulockd.model import Wants
from tests.lua.both import TERMS, Both, Disagreement, budget, card, on
from tests.lua.harness import planted
from tests.lua.test_ledger_directed import brought_lease
from tests.lua.test_planted_bugs import Scenario, play
from tests.servers import Server

ZERO, ONE, SLOT = on("gpu_lock:0"), on("gpu_lock:1"), on("gpu_lock:ocr")
KEY = "gpu_lock:0"


def rolled_back(both: Both, before: list[tuple[str, Wants]], over: str, now: Wants) -> BroughtLease:
    """The store comes back with the leases of `before`; since then `over` was released, and c holds `now`."""
    for id, wants in before:
        both.request("a", id, wants)
    replica = both.remember()
    both.end("a", over, both.token(over))
    assert both.request("c", "present", now)[0] == "granted"
    held = brought_lease(both, "present")
    both.fail_over(replica)
    return held


# Leases of the old books that are over


@pytest.mark.parametrize("over", [budget(4, KEY), budget(14, KEY), ZERO], ids=["4GiB", "14GiB", "exclusive"])
@pytest.mark.parametrize("now", [budget(14, KEY), ZERO], ids=["14GiB", "exclusive"])
def test_a_holder_has_its_gpu_back_whatever_older_books_have_there(two_cards: Both, over: Wants, now: Wants) -> None:
    """A store that comes back older than it was costs no holder its lease, whether it is exclusive or has a budget."""
    both = two_cards
    held = rolled_back(both, [("over", over)], "over", now)
    assert both.open("c", leases=[held]) == ("opened", "frozen", ())
    both.live_on(25_000, "bcd")
    assert both.state("present") == "held"
    assert both.request("b", "next", ZERO)[0] == "waiting"


def both_come_back(both: Both, first: str = "present") -> None:
    ten = budget(10, KEY)
    held = {"present": rolled_back(both, [("older", ten), ("over", ten)], "over", ten)}
    held["older"] = brought_lease(both, "older")
    for id in sorted(held, key=first.__ne__):
        assert both.open({"older": "a", "present": "c"}[id], leases=[held[id]]) == ("opened", "frozen", ())
    assert (both.state("older"), both.state("present")) == ("held", "held")
    assert both.state("over") == "ended: unknown", "no tombstone: its process could have asserted it"


@pytest.mark.parametrize("first", ["older", "present"])
def test_of_budgets_that_do_not_fit_only_the_one_that_is_over_goes(two_cards: Both, first: str) -> None:
    """Nobody can tell from the books which of two it is, so both may come back, in any order of their processes."""
    both_come_back(two_cards, first)


def test_a_budget_that_has_been_asserted_gives_way_to_a_later_token_only(two_cards: Both) -> None:
    """Two who both say that they are there: the earlier one had ended when the later one began."""
    both = two_cards
    held = rolled_back(both, [("older", budget(14, KEY))], "older", budget(14, KEY))
    older = brought_lease(both, "older")
    both.open("c", leases=[held])
    assert both.open("a", leases=[older]) == ("opened", "frozen", ("older",))
    assert (both.state("older"), both.state("present")) == ("ended: unknown", "held")


def later_budget(both: Both) -> None:
    held = rolled_back(both, [("older", budget(14, KEY))], "older", budget(14, KEY))
    both.open("a", leases=[brought_lease(both, "older")])
    both.open("c", leases=[held])
    assert (both.state("older"), both.state("present")) == ("ended: overruled", "held")


def test_a_later_budget_ends_one_that_was_asserted_before_it(two_cards: Both) -> None:
    """In the other order too; the earlier one is told."""
    later_budget(two_cards)


def later_budget_first(both: Both) -> None:
    both.request("a", "whole", ZERO)
    whole = brought_lease(both, "whole")
    later = brought_lease(both, "whole", id="budget", wants=budget(4, KEY).text, token=whole.token + 1)
    both.lose_all()
    both.open("b", leases=[later])
    assert both.open("a", leases=[whole]) == ("opened", "frozen", ("whole",))
    assert both.state("budget") == "held"


def test_a_budget_with_a_later_token_never_gives_way_to_a_whole_card(two_cards: Both) -> None:
    """A whole card was given when nobody was there: whoever came later came after its end."""
    later_budget_first(two_cards)


def test_a_budget_that_lives_on_in_its_members_is_not_put_aside(two_cards: Both) -> None:
    """Its holder has ended, so nobody asserts it; the child still computes."""
    both = two_cards
    both.request("a", "lease", budget(10, KEY))
    both.request("b", "child", budget(10, KEY), inside=("lease", both.token("lease")))
    both.end("a", "lease", both.token("lease"))
    held = rolled_back(both, [("over", budget(10, KEY))], "over", budget(10, KEY))
    both.open("c", leases=[held])
    assert (both.state("child"), both.state("present")) == ("member", "held")


# Joining


def joins_old_books(both: Both) -> None:
    both.request("a", "over", ZERO)
    pair = ("over", both.token("over"))
    replica = both.remember()
    both.end("a", "over", pair[1])
    both.request("c", "present", ZERO)
    both.fail_over(replica)
    assert both.request("b", "child", ZERO, inside=pair)[0] == "waiting"


def test_nobody_joins_a_lease_of_older_books_while_the_pool_is_frozen(two_cards: Both) -> None:
    """It may be over, and somebody else on its gpu, who has not been able to say so yet."""
    both = two_cards
    joins_old_books(both)
    assert both.state("child") == "ended: unknown", "it has no place either"
    assert both.request("b", "hasty", ZERO, inside=("over", 1), wait=False) == ("busy",)


def test_who_has_joined_in_older_books_is_let_in_no_sooner(two_cards: Both) -> None:
    """The answer to its request was never read; its process may have stood still while others held the gpu."""
    both = two_cards
    both.request("a", "lease", ZERO)
    token = both.token("lease")
    both.request("b", "child", ZERO, inside=("lease", token))
    lease = brought_lease(both, "lease")
    both.restart_server()
    assert both.request("b", "child", ZERO, inside=("lease", token))[0] == "waiting"
    assert both.confirm("b", "child", token)[0] == "frozen"
    both.open("a", leases=[lease])
    assert both.request("b", "child", ZERO, inside=("lease", token))[0] == "joined"
    assert both.confirm("b", "child", token)[0] == "granted"


@pytest.mark.parametrize("loss", ["restarted", "emptied"])
@pytest.mark.parametrize("holder", ["asserts", "is late"])
def test_a_child_joins_its_living_parent_in_or_after_the_freeze(two_cards: Both, loss: str, holder: str) -> None:
    """Behind its parent, which waits for it, a place in the queue would be one for ever."""
    both = two_cards
    both.request("a", "lease", ZERO)
    lease, pair = brought_lease(both, "lease"), ("lease", both.token("lease"))
    if loss == "restarted":
        both.restart_server()
    else:
        both.lose_all()
    both.open("b")
    assert both.request("b", "child", ZERO, inside=pair)[:3] == ("waiting", 0, 0)
    if holder == "is late":
        both.live_on(15_000, "b")
        assert both.request("b", "child", ZERO, inside=pair)[:3] == ("waiting", 0, 0)
    both.open("a", leases=[lease])
    assert both.request("b", "child", ZERO, inside=pair)[0] == "joined"
    both.live_on(25_000, "ab")
    assert (both.state("lease"), both.state("child")) == ("held", "member")


def test_a_child_of_a_lease_that_has_ended_takes_a_place_in_the_freeze(two_cards: Both) -> None:
    """Its pair is ignored: there is nothing to wait for."""
    both = two_cards
    both.request("a", "lease", ZERO)
    pair = ("lease", both.token("lease"))
    both.end("a", *pair)
    both.restart_server()
    assert both.request("b", "child", ZERO, inside=pair)[:3] == ("waiting", 1, 1)


def test_where_nothing_was_lost_a_child_joins_before_its_parent_has_said_anything(two_cards: Both) -> None:
    """The store came back whole, and the pool was never frozen for it."""
    both = two_cards
    both.request("a", "lease", ZERO)
    both.restart_server()
    both.offer("d", card(0), card(1, 48), complete=True)
    assert both.request("b", "child", ZERO, inside=("lease", both.token("lease")))[0] == "joined"


# Keys that somebody has deleted by hand


def books_deleted(both: Both) -> None:
    both.request("a", "exclusive", ZERO)
    both.request("b", "budget", budget(40, "gpu_lock:1"))
    held = [brought_lease(both, id) for id in ("exclusive", "budget")]
    both.delete("meta", "offered")
    both.open("d")
    both.offer("d", card(0), card(1, 48))
    for session, lease in zip("ab", held, strict=True):
        both.open(session, leases=[lease])
    both.open("c")
    both.live_on(25_000, "abcd")
    assert both.request("c", "next", ZERO)[0] == "waiting"
    assert both.request("c", "beside", budget(16, "gpu_lock:1"))[0] == "waiting"
    both.end("a", "exclusive", both.token("exclusive"))
    assert both.state("next") == "claim"


def test_leases_stay_on_their_gpus_when_the_books_are_deleted(two_cards: Both) -> None:
    """Their tickets still stand, so their assertion is nothing new; the gpu must not be given to a second one."""
    books_deleted(two_cards)


def test_leases_stay_on_their_gpus_though_nobody_asserts_them(two_cards: Both) -> None:
    """A holder that stands still says nothing before its session has ended."""
    both = two_cards
    both.request("a", "held", ZERO)
    both.delete("meta", "offered")
    assert both.open("c") == ("opened", "frozen", ())
    both.live_on(10_000, "c")
    assert both.request("c", "next", ZERO)[0] == "waiting"
    both.live_on(15_000, "c")
    assert both.state("held") == "ended: died"
    assert both.request("c", "next", ZERO)[0] == "granted"


def slots_deleted(both: Both) -> None:
    both.request("a", "held", SLOT)
    both.request("b", "pair", on("gpu_lock:b", "gpu_lock:c"))
    both.delete("gpus")
    both.look()
    assert both.request("c", "next", SLOT)[0] == "waiting"
    assert both.request("c", "other", on("gpu_lock:d"))[0] == "granted"
    assert both.request("c", "one", on("gpu_lock:c"))[0] == "waiting"
    both.end("a", "held", both.token("held"))
    assert both.state("next") == "claim"


def test_a_slot_is_not_given_twice_when_the_key_of_all_slots_was_deleted(two_cards: Both) -> None:
    """What sits on slots without hardware stands in a key of its own; the leases say it too."""
    slots_deleted(two_cards)


# A pool whose terms have changed since


def ttl_raised(both: Both, *, way: str = "keepalive") -> None:
    both.request("a", "held", ZERO, lock_timeout_ms=60_000)
    if way != "keepalive":
        both.request("b", "waits", ZERO, lock_timeout_ms=60_000)
    both.offer("d", card(0), card(1, 48), terms=msgspec.structs.replace(TERMS, ttl_ms=90_000))
    id, session = ("held", "a") if way == "keepalive" else ("waits", "b")
    if way == "doorbell":
        both.end("a", "held", both.token("held"))
        both.confirm("b", "waits", both.token("waits"))
    elif way == "poll":
        both.unsubscribe("b")
        both.end("a", "held", both.token("held"))
        both.request("b", "waits", ZERO)
    else:
        both.keepalive("a")
    both.live_on(80_000, "d")
    both.unsubscribe("b")
    assert both.state(id) == "held"
    both.live_on(15_000, "d")
    assert both.state(id) == "ended: died", session


@pytest.mark.parametrize("way", ["keepalive", "doorbell", "poll"])
def test_a_lease_that_was_asked_for_before_a_rise_of_the_ttl_lasts_as_long_as_its_session(
    two_cards: Both, way: str
) -> None:
    """Its process believes by the session's new ttl; an own end by the old one would let a second one in beside it."""
    ttl_raised(two_cards, way=way)


# Each of them planted

BUGS: list[tuple[str, Scenario, str, str, str]] = [
    (
        "budgets of the old books stay", later_budget,
        "_brought", "if w.exclusive and g.shared > 0 or crowded then", "if crowded then return false elseif false then",
    ),
    (
        "a whole card sends a later budget away", later_budget_first,
        "_brought", "if t.token > b.token and (w.exclusive or not t.doubtful) then", "if false then",
    ),
    (
        "what may be over leaves a tombstone", both_come_back,
        "_brought", "if over then ends.lease(t, 'overruled') else put_aside(t) end", "ends.lease(t, 'overruled')",
    ),
    (
        "old books are joined", joins_old_books,
        "_members", "if members.in_doubt(id) then return nil, 'in_doubt' end", "",
    ),
    (
        "a child takes a place behind its parent", joins_old_books,
        "request", "if how == 'in_doubt' then", "if false then",
    ),
    ("the books are not counted anew", books_deleted, "_epochs", "if survivors[1] then gpus.count_anew() end", ""),
    (
        "a lease ends before its session", ttl_raised,
        "keepalive", "    if tickets.outlast(lease) then tickets.write(lease) end\n", "",
    ),
    ("slots are not counted anew", slots_deleted, "_gpus", "redis.call('EXISTS', names.gpus) == 0", "false"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "chunk", "right", "wrong"), [bug[1:] for bug in BUGS], ids=[bug[0] for bug in BUGS]
)
def test_a_planted_bug_is_caught(
    valkey_server: Server, pool: str, scenario: Scenario, chunk: str, right: str, wrong: str
) -> None:
    """The same scenario passes without the bug and fails with it."""
    play(valkey_server, pool, scenario)
    with pytest.raises(Disagreement):
        play(valkey_server, f"{pool}-bug", scenario, planted(right, wrong, chunk))
