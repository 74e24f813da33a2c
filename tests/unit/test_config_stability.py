"""When a revision is stable, and when it is taken back."""

from __future__ import annotations

import pytest

from gpulockd.config.stability import Attempts, Course, judge, tripped
from gpulockd.config.status import Facts, overall_status
from gpulockd.settings import ConfigBlock

RULES = ConfigBlock(stable_after=100.0, stable_samples=20, rollback_samples=10, rollback_after=60.0)


def course(*seen: tuple[float, int, int], window_s: float = 60.0) -> Course:
    """A course from nothing: moments with acquired and timed out since the beginning."""
    made = Course(0.0, Attempts(1000, 500, 7), window_s)
    for at_s, acquired, timed_out in seen:
        made.see(at_s, Attempts(1000 + acquired, 500 + timed_out, 7))
    return made


def word(age_s: float, made: Course, before: Attempts | None = None) -> str:
    """What is to be done, with one pool."""
    return judge(age_s, {"a": made}, {"a": before or Attempts()}, RULES).word


def test_what_was_before_the_revision_does_not_count() -> None:
    """500 timeouts of another configuration say nothing of this one."""
    assert course((10, 30, 0)).since == Attempts(30, 0, 0)
    assert word(100, course((10, 30, 0))) == "stable"


def test_it_is_stable_only_after_its_time_and_with_enough_attempts() -> None:
    """A quiet night proves nothing, nor does a good minute."""
    assert word(99, course((10, 30, 0))) == "wait"
    assert word(100, course((10, 19, 0))) == "wait"
    assert word(100, course((10, 20, 0))) == "stable"


def test_too_many_timeouts_lately_take_it_back() -> None:
    """The documented gate: a timeout rate above 10 %."""
    assert word(30, course((10, 89, 11))) == "roll_back"
    assert word(30, course((10, 90, 10))) == "wait"


def test_few_attempts_take_nothing_back() -> None:
    """One timeout of two requests is no rate."""
    assert word(30, course((10, 4, 5))) == "wait"
    assert word(30, course((10, 4, 6))) == "roll_back"


def test_only_the_window_counts_for_taking_back() -> None:
    """A day that went well must not hide an hour that does not; an early bad moment is over."""
    assert word(1000, course((500, 10_000, 0), (590, 10_000, 0), (620, 10_005, 10))) == "roll_back"
    assert course((10, 0, 20), (600, 0, 20), (670, 30, 20)).lately == Attempts(30, 0, 0)


def test_a_rate_that_was_no_better_before_is_not_its_fault() -> None:
    """Going back would not help, and would undo something that has nothing to do with it."""
    assert tripped(Attempts(80, 20, 0), Attempts(70, 30, 0), RULES) == ""
    assert tripped(Attempts(80, 20, 0), Attempts(90, 10, 0), RULES)
    assert tripped(Attempts(80, 20, 0), Attempts(1, 1, 0), RULES)


def test_one_bad_pool_is_enough_and_all_pools_count_for_stable() -> None:
    """A fleet whose average is well can have a host on which nobody gets a lock."""
    courses = {"a": course((10, 1000, 0)), "b": course((10, 0, 10))}
    verdict = judge(1000, courses, {}, RULES)
    assert verdict.word == "roll_back"
    assert "pool b" in verdict.why
    both = {"a": course((10, 10, 0)), "b": course((10, 10, 0))}
    assert judge(1000, both, {}, RULES).word == "stable"


def test_counts_that_begin_anew_are_no_negative_attempts() -> None:
    """The store was emptied: what is counted from then on counts."""
    made = course((10, 30, 0))
    made.see(20.0, Attempts(5, 1, 0))
    assert made.since == Attempts(5, 1, 0)


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (Facts(), "healthy"),
        (Facts(gpus=2, recent_timeout_rate=0.1), "healthy"),
        (Facts(gpus=2, recent_timeout_rate=0.11), "warning"),
        (Facts(gpus=2, recent_timeout_rate=0.21), "critical"),
        (Facts(gpus=2, recent_success_rate=0.79), "warning"),
        (Facts(gpus=2, recent_success_rate=0.4), "critical"),
        (Facts(gpus=2, gpus_not_well=1), "warning"),
        (Facts(gpus=2, gpus_not_well=2), "critical"),
        (Facts(store_answers=False), "critical"),
    ],
)
def test_the_status_follows_the_worst(facts: Facts, status: str) -> None:
    """One word on which scripts act."""
    assert overall_status(facts) == status
