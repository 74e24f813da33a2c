"""The tests of the tests: each planted bug must be seen by the comparison with the model or by an invariant.

A bug is one passage of a Lua file put otherwise; the scenario is the shortest in which it does harm.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpulockd.model import Wants
from tests.lua.both import START_MS, Both, Disagreement, budget, card, on
from tests.lua.harness import planted
from tests.lua.test_ledger_directed import brought_lease
from tests.servers import Server

ZERO, ONE = on("gpu_lock:0"), on("gpu_lock:1")
Scenario = Callable[[Both], None]


def renewal(both: Both) -> None:
    both.request("a", "lease", ZERO, lock_timeout_ms=10_000)
    both.pass_time(1_000)
    both.keepalive("b", [("lease", both.token("lease"))])


def late_winner(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.request("b", "frozen", ZERO)
    both.end("a", "held", both.token("held"))
    token = both.token("frozen")
    both.live_on(3_000, "acd")
    both.confirm("b", "frozen", token)


def hand_over(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.request("b", "next", ZERO)
    both.request("c", "last", ZERO)
    both.end("a", "held", both.token("held"))


def repeated_request(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.request("a", "held", ZERO)


def flushed(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.lose_all()
    both.open("a")


def flushed_and_asserted(both: Both) -> None:
    both.request("a", "held", ZERO)
    held = brought_lease(both, "held", token=START_MS + 10_000_000)
    both.lose_all()
    both.open("a", leases=[held])
    both.live_on(25_000, "a")
    both.open("b")
    both.request("b", "next", ONE)


def back_twice(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.request("b", "early", ZERO)
    both.end("b", "early", None, "parked")
    both.request("b", "again", ZERO, parked="early")


def parked_holder(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.end("a", "held", both.token("held"), "parked")


def strangers_release(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.end("b", "held", both.token("held"))


def stale_release(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.end("a", "held", both.token("held") - 1)


def full_card(both: Both) -> None:
    for n in range(4):
        both.request("a", f"b{n}", budget(8, "gpu_lock:0"))


def beside_budgets(both: Both) -> None:
    both.request("a", "budget", budget(8, "gpu_lock:0"))
    both.request("b", "whole", ZERO)


def cancelled_first(both: Both) -> None:
    both.end("a", "cancelled", None, "abandoned")
    both.request("a", "cancelled", ZERO)


def jump(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.pass_time(3_600_000)
    both.look()


def backward_jump(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.pass_time(-3_600_000)
    both.live_on(25_000, "bcd")


def away_head(both: Both) -> None:
    both.unsubscribe("b")
    hand_over(both)


def wide_and_narrow(both: Both) -> None:
    both.request("a", "one", ZERO)
    both.request("b", "pair", Wants(count=2))
    both.live_on(9_000, "abcd")
    both.request("c", "late", ONE)


def restarted(both: Both) -> None:
    both.restart_server()
    both.request("a", "quick", ZERO)


def half_free(both: Both) -> None:
    both.request("a", "one", ZERO)
    both.request("b", "pair", Wants(count=2))


def overtaking(both: Both) -> None:
    both.request("a", "held", Wants(count=2))
    both.unsubscribe("b")
    both.request("b", "away", ZERO)
    both.request("c", "next", ZERO, priority=1)
    both.request("c", "later", ZERO)
    both.end("a", "held", both.token("held"))


def guarded_loss(both: Both) -> None:
    both.guard()
    both.request("a", "lost", ZERO)
    both.end("", "lost", both.token("lost"), "revoked")


def members_stay(both: Both) -> None:
    both.request("a", "lease", ZERO)
    both.request("b", "child", inside=("lease", both.token("lease")))
    both.end("a", "lease", both.token("lease"))


def older_lease(both: Both) -> None:
    both.request("a", "older", ZERO)
    older, newer = brought_lease(both, "older"), brought_lease(both, "older", id="newer", token=both.token("older") + 5)
    both.lose_all()
    both.open("b", leases=[newer])
    both.open("a", leases=[older])


def failover(both: Both) -> None:
    both.request("a", "before", ZERO)
    both.request("b", "lease", ZERO)
    replica = both.remember()
    both.end("a", "before", both.token("before"))
    both.confirm("b", "lease", both.token("lease"))
    held = brought_lease(both, "lease")
    both.fail_over(replica)
    both.open("b", leases=[held])


FEWER = (
    "if not list[1] then return nil end\nw = {count = math.min(w.count, #list), exclusive = w.exclusive, mib = w.mib}"
)

BUGS: list[tuple[str, Scenario, str, str, str]] = [
    (
        "a keepalive renews anybody's lease", renewal,
        "keepalive", "local stands = t and t.session == session and", "local stands = t and",
    ),
    (
        "a winner enters on a lapsed claim", late_winner,
        "confirm", "if gone_on or t.session ~= ARGV[1] or text(t.token) ~= ARGV[3] then", "if false then",
    ),
    (
        "a hand-off drops a ticket", hand_over,
        "_placing", "    gpus.occupy(w, keys, id)\n", "    if true then return end\n",
    ),
    ("a hand-off forgets to ring", hand_over, "_books", "names.base .. 'session:' .. session", "names.base .. 'x'"),
    (
        "a repeated request is a new one", repeated_request,
        "request", "local t, more = there and tickets.get(id), false\n", "local t, more = nil, false\n",
    ),
    (
        "tokens begin anew after FLUSHALL", flushed,
        "_epochs", "books.raise_token(books.wall_ms)", "books.raise_token(meta.token)",
    ),
    (
        "an asserted token is not remembered", flushed_and_asserted,
        "_brought", "    books.raise_token(b.token)\n", "",
    ),
    (
        "anybody may release", strangers_release,
        "end", "local mine = session == '' or session == t.session", "local mine = true",
    ),
    ("a stale token releases", stale_release, "end", "(token ~= '' and token ~= text(t.token))", "false"),
    (
        "budgets exceed the card", full_card,
        "_gpus", "return g.used_mib + w.mib <= (g.memory_mib or 0)",
        "return g.used_mib <= g.memory_mib",
    ),
    ("a whole lease begins beside budgets", beside_budgets, "_gpus", "return g.shared == 0 end", "return true end"),
    (
        "a tombstone does not kill", cancelled_first,
        "request", "if buried then return books.answer('gone', buried) end", "",
    ),
    (
        "a clock jump ends leases", jump,
        "_books", "math.max(0, math.min(wall_ms - last_ms, meta.step_ms))", "math.max(0, wall_ms - last_ms)",
    ),
    (
        "the clock's last is kept as a maximum", backward_jump,
        "_books", "  books.wall_ms = wall_ms\n",
        "  books.wall_ms = math.max(wall_ms, (string.match(state or '0', '%S+')))\n",
    ),
    (
        "an away ticket stays head", away_head,
        "_queue", "    t.state = 'away'\n",
        "    redis.call('ZADD', names.base .. 'queue:' .. w.text, t.score, t.id)\n    t.state = 'away'\n",
    ),
    (
        "nobody is held back", wide_and_narrow,
        "_holding_back", "books.now - t.stamp >= meta.hold_back_ms and", "false and",
    ),
    (
        "a new server freezes nothing", restarted,
        "_epochs", "    books.note_term('frozen_until', text(books.now + length_ms))\n",
        "    books.note_term('frozen_until', '0')\n",
    ),
    ("some gpus are enough", half_free, "_gpus", "if #list < w.count then return nil end", FEWER),
    (
        "priority does not age", overtaking,
        "request", "t.score = t.stamp - t.priority * meta.priority_step_ms", "t.score = -t.priority",
    ),
    ("a lost gpu does not settle", guarded_loss, "_gpus", "        g.state = 'settling'\n", ""),
    (
        "a lease ends under its members", members_stay,
        "_members", "if redis.call('SCARD', names.base .. 'members:' .. t.id) == 0 then return false end",
        "if true then return false end",
    ),
    (
        "a parked place serves many", back_twice,
        "_tickets", "if id ~= '' then redis.call('DEL', names.base .. 'parked:' .. id) end", "",
    ),
    (
        "who held keeps its place", parked_holder,
        "end", "and not (t.state == 'held' or t.state == 'member')", "",
    ),
    ("the lower token wins", older_lease, "_brought", "if t and t.token > b.token then return false end", ""),
    (
        "after a failover the queue is believed, not the holder", failover,
        "_brought", "    local old = tickets.get(b.id)\n",
        "    local old = tickets.get(b.id)\n    if old then return true end\n",
    ),
]  # fmt: skip


def play(server: Server, pool: str, scenario: Scenario, bug: dict[str, str] | None = None) -> None:
    with Both(server.url, pool, bug) as both:
        both.stage(card(0), card(1, 48))
        scenario(both)


@pytest.mark.parametrize(
    ("scenario", "chunk", "right", "wrong"), [bug[1:] for bug in BUGS], ids=[bug[0] for bug in BUGS]
)
def test_a_planted_bug_is_caught(
    valkey_server: Server, pool: str, scenario: Scenario, chunk: str, right: str, wrong: str
) -> None:
    """A test that cannot fail proves nothing: the same scenario passes without the bug and fails with it."""
    play(valkey_server, pool, scenario)
    with pytest.raises(Disagreement):
        play(valkey_server, f"{pool}-bug", scenario, planted(right, wrong, chunk))
