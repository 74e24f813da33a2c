"""The tests of the tests, around the guard: each planted bug must be seen by the comparison with the model."""

from __future__ import annotations

import msgspec
import pytest

from gpulockd.model import Wants
from tests.lua.both import TERMS, Both, Disagreement, card, on
from tests.lua.harness import planted
from tests.lua.test_guard_directed import guard_dies_in_a_crowd, lose
from tests.lua.test_ledger_directed import brought_lease
from tests.lua.test_planted_bugs import Scenario, play
from tests.servers import Server

ZERO, ONE = on("gpu_lock:0"), on("gpu_lock:1")


def guard_dies(both: Both) -> None:
    both.guard()
    both.end("", "d", reason="died", what="session")


def guard_dies_while_settling(both: Both) -> None:
    both.guard()
    lose(both, "lost")
    both.end("", "d", reason="died", what="session")
    both.live_on(6_000, "abc")


def crowd(both: Both) -> None:
    both.guard()
    guard_dies_in_a_crowd(both)


def guard_lives_while_settling(both: Both) -> None:
    both.guard()
    lose(both, "lost")
    both.live_on(6_000, "abcd")


def drained_while_settling(both: Both) -> None:
    both.guard()
    lose(both, "lost")
    both.report("d", "gpu_lock:0", "drained")
    both.report("d", "gpu_lock:0", "settled")


def settled(both: Both) -> None:
    both.guard()
    lose(both, "lost")
    both.request("b", "next", ZERO)
    both.report("d", "gpu_lock:0", "settled")


def second_daemon(both: Both) -> None:
    both.guard()
    both.open("e")
    both.offer("e", card(0), guarded=True, offerer="two")


def killed_daemon(both: Both) -> None:
    both.guard()
    both.request("d", "for-another", ZERO)
    both.open("d2")
    both.guard("d2")


def rebooted(both: Both) -> None:
    both.guard()
    both.request("d", "before", ZERO)
    both.open("d2", boot_id="boot-3", machine="machine-1")
    both.offer("d2", card(0), card(1, 48), boot_id="boot-3", guarded=True)


def high_token(both: Both) -> None:
    both.offer("d", card(0), guarded=True, highest_token=both.model.token + 5_000)


def emptied(both: Both) -> None:
    both.guard()
    both.lose_all()
    both.open("d")
    both.offer("d", card(0), guarded=True)
    both.offer("d", card(0), guarded=True, knows_all=True)


def said_to_an_earlier_epoch(both: Both) -> None:
    both.guard()
    replica = both.remember()
    both.request("a", "held", ZERO)
    held = brought_lease(both, "held")
    both.restart_server()
    both.guard()
    both.open("a", leases=[held])
    both.fail_over(replica)
    both.guard(knows_all=True)


def nobody_guarded(both: Both) -> None:
    both.restart_server()
    both.guard()
    both.guard(knows_all=True)


def nobody_guarded_and_changed_twice(both: Both) -> None:
    both.restart_server()
    both.guard()
    both.restart_server()
    both.guard()
    both.guard(knows_all=True)


def waited_for(both: Both) -> None:
    both.lose_all()
    both.open("a", guard_gone_ms=60_000)
    both.live_on(10_000, "a")
    both.open("b", guard_gone_ms=60_000)


def there_again(both: Both) -> None:
    both.lose_all()
    both.open("d")
    both.offer("d", card(0), guarded=True)
    both.open("a", guard_gone_ms=60_000)


def freezes_late(both: Both) -> None:
    both.open("e", guard_gone_ms=60_000)


def emptied_and_vouched_for(both: Both) -> None:
    both.guard()
    both.lose_all()
    both.open("d")
    both.offer("d", card(0), guarded=True, complete=True)


def two_gpus(both: Both) -> None:
    both.guard()
    both.request("a", "held", Wants(count=2))
    both.request("b", "next", Wants(count=2))
    both.end("a", "held", both.token("held"))


def strict(both: Both) -> None:
    both.offer("d", card(0), guarded=True, terms=msgspec.structs.replace(TERMS, settle_policy="always"))


def claim_lapses_strictly(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.request("b", "never-comes", ZERO)
    both.end("a", "held", both.token("held"))
    strict(both)
    both.live_on(3_000, "abcd")


def claim_is_asserted_strictly(both: Both) -> None:
    both.request("a", "held", ZERO)
    both.request("b", "lease", ZERO)
    both.end("a", "held", both.token("held"))
    strict(both)
    replica = both.remember()
    both.confirm("b", "lease", both.token("lease"))
    held = brought_lease(both, "lease")
    both.fail_over(replica)
    both.open("b", leases=[held])


def released_strictly(both: Both) -> None:
    strict(both)
    both.request("a", "held", ZERO)
    both.end("a", "held", both.token("held"))


BUGS: list[tuple[str, Scenario, str, str, str]] = [
    (
        "a dead guard still guards", guard_dies,
        "_due", "if meta.guarded == '1' and meta.offer_session == session then books.note_term('guarded', '0') end", "",
    ),
    (
        "a gpu is quarantined although the guard has gone", guard_dies_while_settling,
        "_due", "guard_ends_ms and tonumber(guard_ends_ms) > books.now", "true",
    ),
    (
        "a dead guard that stands in line quarantines", crowd,
        "_due", "guard_ends_ms and tonumber(guard_ends_ms) > books.now", "guard_ends_ms",
    ),
    (
        "a gpu that did not settle goes on under the guard's eyes", guard_lives_while_settling,
        "_due", "g.state = guarded and 'quarantined' or 'ready'", "g.state = 'ready'",
    ),
    (
        "nothing settles where a guard stands", guard_lives_while_settling,
        "_gpus", "there and meta.guarded == '1' and g.state", "there and meta.guarded ~= '1' and g.state",
    ),
    (
        "a claim that nobody took settles", claim_lapses_strictly,
        "_due", "keys, t.id, nil)", "keys, t.id, false)",
    ),
    (
        "a claim that is asserted as a lease settles under it", claim_is_asserted_strictly,
        "_brought", "t.id, nil)", "t.id, false)",
    ),
    (
        "settle always settles losses only", released_strictly,
        "_gpus", "(lost ~= nil and meta.settle_policy == 'always')", "false",
    ),
    (
        "settled lifts a drained gpu", drained_while_settling,
        "report", "if state == 'settled' and was ~= 'settling' and was ~= 'quarantined' then", "if false then",
    ),
    (
        "settled hands nothing on", settled,
        "report", "if g.state == 'ready' then books.freed[key] = true else", "if g.state ~= 'ready' then",
    ),
    (
        "a second daemon takes over", second_daemon,
        "offer", "if redis.call('HGET', names.offer, 'offerer') ~= ARGV[14] and before_boot == boot_id then",
        "if false then",
    ),
    (
        "a killed daemon does not come back", killed_daemon,
        "offer", "redis.call('HGET', names.offer, 'offerer') ~= ARGV[14] and", "",
    ),
    (
        "what a killed daemon held does not settle", killed_daemon,
        "offer", "if rebooted then books.note_term('guarded', '0') end", "books.note_term('guarded', '0')",
    ),
    (
        "what ran before a reboot settles", rebooted,
        "offer", "if rebooted then books.note_term('guarded', '0') end", "",
    ),
    ("the guard's token is not minded", high_token, "offer", "books.raise_token(tonumber(ARGV[13]))", ""),
    (
        "the guard's word opens lost books at once", emptied,
        "_epochs", "if not unseen and meta.frozen_why == 'store_changed' then", "if not unseen then",
    ),
    (
        "the guard's word opens nothing", emptied,
        "offer", "if ARGV[12] == '1' and in_this_epoch and books.frozen() then epochs.known_by_guard() end", "",
    ),
    (
        "what was said to an earlier epoch counts", said_to_an_earlier_epoch,
        "offer", "before == session and meta.offer_epoch == meta.epoch", "before == session",
    ),
    (
        "a guard knows whom it has never seen", nobody_guarded,
        "_epochs", "local unseen = meta.was_guarded == '0'", "local unseen = false",
    ),
    (
        "a second change of the store makes the guard wise", nobody_guarded_and_changed_twice,
        "_epochs", "if not books.frozen() then books.note('was_guarded', meta.guarded) end",
        "books.note('was_guarded', meta.guarded)",
    ),
    (
        "every session makes the wait for a guard longer", waited_for,
        "_epochs", "    if meta.frozen_why == 'guard_away' then return end\n", "",
    ),
    (
        "a guard is not waited for", waited_for,
        "_epochs", "math.max(tonumber(meta.frozen_until), books.now + length_ms)", "tonumber(meta.frozen_until)",
    ),
    ("a guard that is there is waited for", there_again, "open", " and meta.guarded ~= '1'", ""),
    (
        "a late session freezes an open pool", freezes_late,
        "open", "ARGV[8] ~= '0' and books.frozen()", "ARGV[8] ~= '0'",
    ),
    (
        "an emptied store is vouched for", emptied_and_vouched_for,
        "offer", "(fresh or meta.frozen_why == 'store_changed')", "true",
    ),
    (
        "a doorbell does not say where to", two_gpus,
        "_placing", " .. ' ' .. table.concat(keys, ',')\n", "\n",
    ),
    (
        "answers do not say that a guard is there", guard_lives_while_settling,
        "_books", "(terms.guarded == '1' and ' guarded' or '')", "''",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "chunk", "right", "wrong"), [bug[1:] for bug in BUGS], ids=[bug[0] for bug in BUGS]
)
def test_a_planted_bug_of_the_guard_is_caught(
    valkey_server: Server, pool: str, scenario: Scenario, chunk: str, right: str, wrong: str
) -> None:
    """A fence that nobody tries is a drawing of one."""
    play(valkey_server, pool, scenario)
    with pytest.raises(Disagreement):
        play(valkey_server, f"{pool}-bug", scenario, planted(right, wrong, chunk))
