"""What a rollout's candidate has done must not be laid at the door of the revision that all others go by."""

from __future__ import annotations

import msgspec

from gpulockd.config.rollout import begin, moved, step
from gpulockd.config.spells import is_within, touching, without_canaries
from gpulockd.config.stability import Attempts, Course, judge
from gpulockd.config.staged import Facts, Rollout, Said, Spell, Stage
from gpulockd.events import Event, LockAcquired, WaitTimedOut
from gpulockd.settings import ConfigBlock

HOSTS = ("a", "b", "c")
SESSIONS = Spell(rollout="r", unit="sessions", pools=("a",), below=0.4, from_ms=10_000, to_ms=20_000)


def place(_rollout: str, session: str) -> float:
    """The place of a session is its name."""
    return float(session)


def timed_out(at_ms: int, session: str, waited_ms: int = 100) -> Event:
    """A wait that was over at that moment."""
    return WaitTimedOut(seq=1, at_ms=at_ms, pool="a", session=session, waited_ms=waited_ms)


def counted(*events: Event, spell: Spell = SESSIONS) -> Attempts:
    """What counts of these."""
    return without_canaries(events, [spell], place, grace_ms=2_000)


def facts(wall_ms: int, **fields: object) -> Facts:
    """What is so at that moment."""
    return msgspec.structs.replace(Facts(elapsed_ms=wall_ms, wall_ms=wall_ms, living=HOSTS, revision=1), **fields)


def new(share: float = 0.1) -> Rollout:
    """A rollout over three hosts that has begun."""
    rollout = Rollout(
        id="r",
        author="me",
        reason="",
        stages=(Stage(share, 60.0), Stage(0.9, 60.0)),
        unit="pools",
        base=1,
    )
    return begin(rollout, facts(30_000))


def test_a_session_that_goes_by_a_candidate_is_not_counted_and_the_others_are() -> None:
    """The canary's timeouts once took the whole fleet back, and everything that was set since."""
    assert counted(timed_out(15_000, "0.3"), timed_out(15_000, "0.5")) == Attempts(timed_out=1)
    assert counted(LockAcquired(seq=1, at_ms=15_000, pool="a", session="0.1", waited_ms=0)) == Attempts()
    assert counted(timed_out(15_000, "")) == Attempts(), "whose it is nobody knows"


def test_a_wait_keeps_what_it_began_with() -> None:
    """It may end long after the candidate was taken back, and programs hear of that a moment later."""
    assert counted(timed_out(90_000, "0.3", waited_ms=75_000)) == Attempts()
    assert counted(timed_out(21_500, "0.3")) == Attempts()
    assert counted(timed_out(23_000, "0.3")) == Attempts(timed_out=1)
    assert counted(timed_out(11_000, "0.3", waited_ms=9_000)) == Attempts(timed_out=1), "it began before"


def test_of_a_pool_that_goes_by_a_candidate_nothing_counts() -> None:
    """Where hosts are the share, everybody on one goes by it."""
    whole = Spell(rollout="r", unit="pools", pools=("a",), below=1.0, from_ms=10_000)
    assert counted(timed_out(15_000, "0.9"), spell=whole) == Attempts()
    assert touching([whole], "b") == ()
    assert is_within([whole], 10**12), "it is in force still"
    assert not is_within([SESSIONS], 20_001)


def test_a_rollout_remembers_where_and_when_its_candidate_was_in_force() -> None:
    """Also after its end, and after a restart of every daemon: it is in its state; so are those before it."""
    rollout = new()
    first = rollout.spells[-1]
    assert (first.rollout, first.unit, first.pools) == ("r", "pools", rollout.pools)
    assert (first.from_ms, first.to_ms) == (30_000, 0)
    wider = moved(rollout, "stage_passed", facts(90_000), Said("on"))
    assert set(wider.spells[-1].pools) == set(wider.pools) > set(first.pools)
    assert wider.spells[-1].from_ms == 30_000
    again = moved(wider, "base_changed", facts(95_000, living=("b",), revision=2), Said("again"))
    assert set(again.spells[-1].pools) >= set(wider.pools), "who is out again had it"
    returning = moved(again, "abort", facts(96_000), Said("no"))
    assert returning.spells[-1].to_ms == 0, "nobody has taken it back yet"
    over = step(returning, facts(97_000, revision=2))[0]
    assert (over.phase, over.spells[-1].to_ms) == ("returned", 97_000)
    assert msgspec.convert(msgspec.to_builtins(over), Rollout) == over


def test_spells_of_another_rollout_are_kept_beside_its_own() -> None:
    """A second rollout right after a failed one must not bring the first one's timeouts back."""
    before = Spell(rollout="q", unit="sessions", pools=("a",), below=0.4, from_ms=10_000, to_ms=20_000)
    rollout = begin(msgspec.structs.replace(new(), id="s", spells=(before,)), facts(30_000))
    assert [spell.rollout for spell in rollout.spells] == ["q", "s"]


def test_the_judge_goes_by_what_was_counted_again() -> None:
    """Books know no sessions; what was counted one by one is what a revision is judged by."""
    course = Course(0.0, Attempts(), 60.0)
    course.see(10.0, Attempts(50, 50, 0))
    rules = ConfigBlock(rollback_samples=10)
    assert judge(10, {"a": course}, {}, rules).word == "roll_back"
    assert judge(10, {"a": course}, {}, rules, {"a": Attempts(50, 1, 0)}).word == "wait"
