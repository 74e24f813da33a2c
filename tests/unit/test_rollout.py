"""How a staged rollout goes on: its moves, its shares and its gates, decided without a clock or a store."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest

from gpulockd.config import gates
from gpulockd.config.change import refuse_own_judges
from gpulockd.config.gates import Counted, more, tripped
from gpulockd.config.live import ALL, changed
from gpulockd.config.rollout import TABLE, begin, commanded, counted, given_up, moved, step, told
from gpulockd.config.shares import pools_in, size_of, threshold
from gpulockd.config.staged import Agreed, Facts, NotNow, Revise, Rollout, Said, Stage, TakeBack, Tell
from gpulockd.errors import ConfigError
from gpulockd.ledger.tally import Outcome
from gpulockd.settings import RolloutBlock

HOUR_MS = 3_600_000
HOSTS = tuple(f"host-{n}" for n in range(10))


LIMITS = Agreed()
DOCUMENTED = (Stage(0.1, 86_400), Stage(0.5, 172_800))


def at(hours: float, **fields: Any) -> Facts:
    """What is so that many hours after the beginning: ten hosts live, and nothing has changed."""
    plain: dict[str, Any] = {"living": HOSTS, "revision": 3}
    return Facts(elapsed_ms=round(hours * HOUR_MS), wall_ms=0, **plain | fields)


def new(**fields: Any) -> Rollout:
    """A rollout with the documented stages, in its first one."""
    plain: dict[str, Any] = {
        "id": "r1",
        "author": "ops",
        "reason": "faster",
        "stages": DOCUMENTED,
        "unit": "pools",
        "base": 3,
    }
    return begin(Rollout(**plain | fields), at(0))


def well(rollout: Rollout, attempts: int = 100) -> Rollout:
    """The rollout after attempts that all got the lock."""
    return counted(rollout, {}, outcomes=["acquired"] * attempts)


def badly(rollout: Rollout, good: int, *, timed_out: int = 0, failed: int = 0) -> Rollout:
    """The rollout after attempts of which some did not get the lock."""
    outcomes: dict[Outcome, int] = {"acquired": good, "timed_out": timed_out, "failed": failed}
    return counted(rollout, {}, outcomes=[word for word, count in outcomes.items() for _ in range(count)])


def after(rollout: Rollout, hours: float, **fields: Any) -> Rollout:
    """The rollout after a look at that hour."""
    return step(rollout, at(hours, **fields))[0]


def test_the_documented_stages_end_with_an_approval_before_all() -> None:
    """B-201, B-202, B-204, B-210, B-211: 10 % for 24 h, 50 % for 48 h, a person, all."""
    canary = well(new())
    assert len(canary.pools) == 1
    assert after(canary, 23.9).stage == 0, "a stage does not end before its time"
    half = after(canary, 24)
    assert (half.stage, len(half.pools), half.phase) == (1, 5, "holding")
    assert set(canary.pools) < set(half.pools), "who is in stays in"
    half = well(half)
    assert after(half, 71.9) == half
    waiting, todo = step(half, at(72))
    assert waiting.phase == "awaiting"
    assert not any(isinstance(one, Revise) for one in todo), "nobody goes on without a person"
    assert after(waiting, 1000).phase == "awaiting"
    approved = commanded(waiting, "approve", at(1001), author="lead")
    assert (approved.phase, approved.approved_by) == ("finishing", "lead")
    assert Revise() in step(approved, at(1001))[1]
    assert moved(approved, "revised", at(1001), Said("all")).phase == "done"


def test_a_line_for_the_audit_stays_until_it_is_told() -> None:
    """A driver that dies between the decision and its audit line must not leave a gap in it."""
    rollout = new()
    todo = step(rollout, at(0))[1]
    assert len(todo) == 1
    assert isinstance(todo[0], Tell)
    assert "UNVALIDATED" in todo[0].lines[0].text, "B-203"
    assert "10%" in todo[0].lines[0].text
    assert rollout.pools[0] in todo[0].lines[0].text
    assert step(told(rollout, todo[0].lines), at(0))[1] == ()


def test_without_an_approval_being_required_all_come_after_the_last_stage() -> None:
    """A fleet of tests and of one person needs no ceremony."""
    half = well(after(well(new(limits=Agreed(require_approval=False))), 24))
    assert after(half, 72).phase == "finishing"


def test_a_rollout_goes_by_the_limits_of_its_beginning() -> None:
    """They are in its state: the daemon that drives may go by the candidate, and its gates may be wide open."""
    strict = badly(new(limits=Agreed.of(RolloutBlock(timeout_rate=0.01))), 98, timed_out=2)
    assert after(strict, 1).phase == "returning"
    kept = msgspec.convert(msgspec.to_builtins(strict), Rollout)
    assert kept.limits.timeout_rate == 0.01
    assert msgspec.to_builtins(Agreed()) == {}
    assert Agreed.of(RolloutBlock()) == Agreed(), "what a state says nothing of are the documented ones"


@pytest.mark.parametrize("tree", [{"rollout": {"timeout_rate": 1.0}}, {"config": {"auto_rollback": False}}])
def test_a_candidate_brings_no_judges_of_its_own(tree: dict[str, Any]) -> None:
    """One that opens its gates and needs no approval would always be found good."""
    live: dict[str, Any] = {"all": {"gpu_lock": {"poll_interval": 1.0}}}
    own = {"gpu_lock": {"poll_interval": 0.5}}
    refuse_own_judges(live, changed(live, own, scope=ALL))
    with pytest.raises(ConfigError, match="is judged by this"):
        refuse_own_judges(live, changed(live, own | tree, scope=ALL))
    with pytest.raises(ConfigError, match="is judged by this"):
        refuse_own_judges(changed(live, tree, scope=ALL), live)


@pytest.mark.parametrize(
    ("outcomes", "gate"),
    [
        ({"good": 95, "timed_out": 4, "failed": 1}, None),
        ({"good": 95, "timed_out": 5}, "timeouts"),
        ({"good": 90, "timed_out": 4, "failed": 6}, "failures"),
        ({"good": 94, "timed_out": 2, "failed": 4}, "success"),
        ({"good": 15, "timed_out": 4}, None),
        ({"good": 0}, None),
    ],
)
def test_gates_close_at_the_documented_rates(outcomes: dict[str, int], gate: str | None) -> None:
    """B-205, B-207, B-208: success at least 95 %, failures below 10 %, timeouts below 5 %; few prove nothing."""
    trip = tripped(badly(new(), **outcomes).counted, LIMITS)
    assert (trip and trip.gate) == gate


def test_a_busy_store_closes_the_gate_only_when_it_stays_busy() -> None:
    """B-209: below 80 %; one look may fall on a snapshot of the store."""
    twice = more(more(Counted(), cpu=0.95), cpu=0.95)
    assert tripped(twice, LIMITS) is None
    assert tripped(more(twice, cpu=0.3), LIMITS) is None
    trip = tripped(more(twice, cpu=0.8), LIMITS)
    assert trip is not None
    assert trip.gate == "redis_cpu"


def test_a_critical_alert_closes_the_gate_at_once() -> None:
    """B-206: an incident needs no statistics."""
    rollout = after(counted(new(), {}, alerts=["GPU_LOCK_TIMEOUT_RATE_HIGH"]), 0.01)
    assert rollout.phase == "returning"
    assert "GPU_LOCK_TIMEOUT_RATE_HIGH" in rollout.why


def test_a_bad_hour_after_good_days_closes_the_gate() -> None:
    """A hundred thousand good attempts would hide it for a day."""
    good = well(new(), 10_000)
    assert tripped(badly(good, 181, timed_out=19).counted, LIMITS) is None
    trip = tripped(badly(good, 180, timed_out=20).counted, LIMITS)
    assert trip is not None
    assert trip.gate == "recent"


def test_a_canary_with_too_few_attempts_waits_for_more_then_goes_on_with_a_note() -> None:
    """A quiet night proves nothing, and must not stop the rollout for ever."""
    quiet = well(new(), 3)
    assert after(quiet, 24) == quiet
    assert after(quiet, 47.9) == quiet
    later = after(quiet, 48)
    assert later.stage == 1
    assert "too few to judge" in later.untold[-1].text
    assert after(well(quiet, 17), 30).stage == 1, "it goes on as soon as there are enough"


def test_a_canary_with_few_attempts_of_which_one_failed_goes_back() -> None:
    """Few attempts cannot excuse a failure."""
    assert after(badly(new(), 5, failed=1), 47.9).phase == "holding"
    back = after(badly(new(), 5, failed=1), 48)
    assert back.phase == "returning"
    assert "fewer than 20" in back.why


def test_it_goes_back_until_every_host_has_taken_the_candidate_back() -> None:
    """A host whose daemon is down still publishes it, and "returned" would be a lie."""
    bad = badly(new(), 10, timed_out=10)
    back, todo = step(bad, at(1, carrying=frozenset(bad.pools)))
    assert back.phase == "returning"
    assert todo[-1] == TakeBack(bad.pools)
    assert back.carries(bad.pools[0]) == 0
    assert after(back, 2, carrying=frozenset(bad.pools)).phase == "returning"
    assert after(back, 2).phase == "returned"


def test_a_pause_stops_the_clock_and_not_the_gates() -> None:
    """Whoever looks into something must not find it widened meanwhile, nor a bad candidate kept."""
    paused = commanded(well(new()), "pause", at(10), author="ops")
    assert after(paused, 500).phase == "paused"
    assert after(badly(paused, 0, timed_out=100), 500).phase == "returning"
    resumed = commanded(paused, "resume", at(500), author="ops")
    assert after(resumed, 513.9).stage == 0
    assert after(resumed, 514).stage == 1


def test_an_abort_goes_back_from_every_phase_that_holds() -> None:
    """The way out is always open."""
    for rollout in (new(), commanded(new(), "pause", at(1), author="ops")):
        back = commanded(rollout, "abort", at(2), author="ops", reason="wrong day")
        assert back.phase == "returning"
        assert back.why == "ops aborted it (wrong day)"


Command = Literal["approve", "pause", "resume", "abort"]


@pytest.mark.parametrize("command", ["approve", "resume"])
def test_what_does_not_fit_the_phase_is_refused_with_the_reason(command: Command) -> None:
    """An approval in advance would be one of nothing."""
    with pytest.raises(NotNow, match="a stage holds"):
        commanded(new(), command, at(1), author="ops")


def test_an_approval_comes_too_late_where_a_gate_has_closed() -> None:
    """A person approves what was seen, and the gate has seen more."""
    waiting = after(well(after(well(new()), 24)), 72)
    with pytest.raises(NotNow, match=r"goes back: .*; begin another when that is mended"):
        commanded(badly(waiting, 0, timed_out=50), "approve", at(73), author="lead")


def test_a_change_by_others_lets_the_stage_begin_again() -> None:
    """What was measured over another configuration proves nothing of this one."""
    again = after(well(new()), 20, revision=4)
    assert (again.base, again.stage, again.began_ms, again.counted) == (4, 0, 20 * HOUR_MS, Counted())


def test_a_rollback_ends_the_rollout() -> None:
    """Who rolls back wants the stable configuration everywhere."""
    back = after(well(new()), 20, revision=4, rolled_back=True)
    assert back.phase == "returning"
    finishing = commanded(after(well(after(well(new()), 24)), 72), "approve", at(73), author="lead")
    assert after(finishing, 74, revision=5, rolled_back=True).phase == "returning"


def test_a_rollback_that_made_no_revision_ends_the_rollout_too() -> None:
    """The stable configuration may be in force for all but the share, and that share is what a person wants back."""
    waiting = after(well(after(well(new()), 24)), 72)
    for rollout in (new(), waiting, commanded(waiting, "approve", at(73), author="lead")):
        back = given_up(rollout, at(73), author="ana", reason="slow")
        assert (back.phase, back.why) == ("returning", "ana rolled the configuration back (slow)")
    over = after(given_up(new(), at(1), author="ana"), 2)
    assert given_up(over, at(3), author="ana") == over


def test_a_canary_whose_hosts_are_gone_at_its_end_begins_again_with_others() -> None:
    """Nobody can pass for hosts that are off; a daemon that only restarts must not cost a day."""
    rollout = well(new())
    living = tuple(host for host in HOSTS if host not in rollout.pools)
    assert after(rollout, 20, living=living) == rollout
    again, todo = step(rollout, at(24, living=living, carrying=frozenset(rollout.pools)))
    assert TakeBack(rollout.pools) in todo, "its programs still go by the candidate"
    assert again.pools
    assert set(again.pools) <= set(living)
    assert again.counted == Counted()


def test_every_move_of_the_table_ends_in_a_phase_that_has_a_way_out() -> None:
    """A phase without one would hold the candidate for ever."""
    ways = {phase for phase, _ in TABLE}
    assert {then for then, _ in TABLE.values()} <= ways | {"done", "returned"}
    assert {event for phase, event in TABLE if phase == "returning"} == {"all_back"}, "once back, only back"
    assert all((phase, "abort") in TABLE for phase in ("holding", "paused", "awaiting"))


def test_stages_must_be_shares_that_grow() -> None:
    """There is nobody beyond all, and a smaller share is no step forward."""
    for stages in ((), (Stage(1.1, 5),), (Stage(0.5, 5), Stage(0.1, 5)), (Stage(0.1, 0),)):
        with pytest.raises(ValueError, match="stage"):
            new(stages=stages)


@pytest.mark.parametrize(
    ("share", "living", "size"), [(0.1, 3, 1), (0.1, 30, 3), (0.5, 3, 2), (0.1, 0, 0), (0.5, 1, 1)]
)
def test_shares_round_up(share: float, living: int, size: int) -> None:
    """B-204: a tenth of three hosts is one host, and a tenth of thirty is three."""
    assert size_of(share, living) == size


def test_sessions_are_in_by_their_place() -> None:
    """With few sessions the share alone may bring in nobody, or too many."""
    assert threshold([], 0.1) == 0.1
    assert threshold([0.05, 0.3, 0.5, 0.9], 0.1) == 0.1
    assert threshold([0.2, 0.4, 0.9], 0.1) == pytest.approx(0.3)
    assert threshold([0.01, 0.03, 0.9], 0.1) == pytest.approx(0.02)
    assert threshold([0.2, 0.4, 0.9], 0.1, before=0.25) == 0.25, "what fits stays"
    assert threshold([0.5], 0.1) == 1.0


def test_a_share_of_sessions_is_kept_to_while_they_come_and_go() -> None:
    """Workers restart all day; one that lives long enough must not bring the canary to nothing."""
    rollout = begin(
        Rollout(id="r", author="a", reason="", stages=DOCUMENTED, unit="sessions", base=3, pools=("p",)),
        at(0, places=(0.2, 0.4, 0.9)),
    )
    assert rollout.carries("p") == pytest.approx(0.3)
    assert rollout.carries("q") == 0
    more_in = after(rollout, 1, places=(0.1, 0.2, 0.25, 0.9))
    assert 0.1 <= more_in.below < 0.2
    nobody = after(more_in, 2, places=(0.6, 0.7))
    assert 0.6 < nobody.below <= 0.7


def test_pools_that_are_in_come_first_and_dead_ones_fall_out() -> None:
    """A stage that is widened adds hosts and keeps those that have run the candidate."""
    first = pools_in("r", HOSTS, 0.1)
    assert set(first) <= set(pools_in("r", HOSTS, 0.5, first))
    assert first[0] not in pools_in("r", [host for host in HOSTS if host not in first], 0.1, first)
    assert gates.CPU_LOOKS > 1


def test_a_rollout_survives_its_way_through_the_store() -> None:
    """Any daemon can go on with what another has written."""
    rollout = badly(after(well(new()), 24), 3, failed=1)
    assert msgspec.json.decode(msgspec.json.encode(rollout), type=Rollout) == rollout
