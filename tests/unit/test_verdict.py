"""What may be concluded from a trial: GPU_LOCK_CONFIG_001's limits, and what was not measured is never called met."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpulockd.trial.measured import Measured, measured
from gpulockd.trial.verdict import Mode, Verdict, as_json, judge, reach_of
from gpulockd.trial.worker import Outcome

POLLS = ("gpu_lock.poll_interval",)


def found(**differs: Any) -> Measured:
    """A measurement in which all went well."""
    usual: dict[str, Any] = {
        "tasks": 100,
        "success_rate": 1.0,
        "timeout_rate": 0.0,
        "avg_wait_time": 1.0,
        "p50_wait_time": 1.0,
        "p95_wait_time": 2.0,
        "longest_wait_time": 3.0,
        "redis_cpu": 0.01,
    }
    return Measured(**usual | differs)


def judged(
    *, changed: tuple[str, ...] = POLLS, mode: Mode = "polling", baseline: Measured | None = None, **differs: Any
) -> Verdict:
    """The verdict on a candidate that is better by half unless `differs` says otherwise."""
    return judge(baseline or found(), found(**{"avg_wait_time": 0.5} | differs), mode=mode, changed=changed)


def outcome(verdict: Verdict, name: str) -> str:
    """How one criterion came out."""
    return next(criterion.outcome for criterion in verdict.criteria if criterion.name == name)


def test_a_candidate_that_meets_all_four_limits_is_validated() -> None:
    """B-105 to B-108 together."""
    verdict = judged()
    assert verdict.passed
    assert {criterion.outcome for criterion in verdict.criteria} == {"passed"}
    assert verdict.results == {
        "success_rate": 1.0,
        "avg_wait_time": 0.5,
        "redis_cpu_increase": 0.0,
        "timeout_rate": 0.0,
    }


@pytest.mark.parametrize(
    ("criterion", "met", "missed"),
    [
        ("success", {"success_rate": 0.95}, {"success_rate": 0.9499}),
        ("waits", {"avg_wait_time": 0.6999}, {"avg_wait_time": 0.7}),
        ("redis_cpu", {"redis_cpu": 0.01499}, {"redis_cpu": 0.01501}),
        ("timeouts", {"timeout_rate": 0.0499}, {"timeout_rate": 0.05}),
    ],
)
def test_each_limit_is_where_the_requirement_puts_it(
    criterion: str, met: dict[str, Any], missed: dict[str, Any]
) -> None:
    """B-105 success >= 0.95, B-106 wait < 0.7 of the baseline's, B-107 CPU growth < 0.5, B-108 timeouts < 0.05."""
    assert outcome(judged(**met), criterion) == "passed"
    verdict = judged(**missed)
    assert outcome(verdict, criterion) == "failed"
    assert not verdict.passed
    assert criterion in verdict.summary


def test_poll_settings_are_not_validated_where_nobody_polled() -> None:
    """Notifications wake everybody: equal waits say nothing about poll settings, and the cure is named."""
    verdict = judged(mode="events", avg_wait_time=1.0)
    assert outcome(verdict, "waits") == "not_exercised"
    assert not verdict.passed
    assert "--polling" in verdict.summary


def test_better_waits_are_no_merit_of_poll_settings_where_nobody_polled() -> None:
    """Chance must not validate: without polling, a lower wait is noise."""
    assert outcome(judged(mode="events", avg_wait_time=0.1), "waits") == "not_exercised"


def test_a_change_that_cannot_act_on_waits_is_judged_by_the_rest() -> None:
    """A hard limit never shortens a wait; it would else never be validated."""
    changed = ("gpu_lock_monitor.timeout_levels.hard_timeout", "gpu_lock.max_wait_time", "tasks.whisper.max_wait_time")
    verdict = judged(changed=changed, mode="events", avg_wait_time=1.0)
    assert outcome(verdict, "waits") == "does_not_apply"
    assert verdict.passed
    assert "waits" in verdict.summary
    assert not judged(changed=changed, mode="events", avg_wait_time=1.0, timeout_rate=0.5).passed


def test_waits_that_grow_far_fail_even_where_no_reason_is_known() -> None:
    """What the change should not act on has become worse all the same."""
    verdict = judged(changed=("gpu_lock.lock_timeout",), mode="events", avg_wait_time=2.0)
    assert outcome(verdict, "waits") == "failed"


def test_what_a_change_can_reach_is_told_by_its_paths() -> None:
    """A poll setting acts while programs poll; the queue acts always; the rest never."""
    assert reach_of(["gpu_lock.max_wait_time", "tasks.whisper.poll_interval"]) == "polls"
    assert reach_of(["gpu_lock.poll_interval", "queue.hold_back_after"]) == "waits"
    assert reach_of(["gpu_lock.lock_timeout", "web.listen", "pool"]) == "none"
    assert reach_of([]) == "none"


def test_what_a_minute_cannot_show_is_said() -> None:
    """A limit of 300 s is not near in a trial whose longest wait is 3 s."""
    notes = " ".join(judged(changed=("gpu_lock.max_wait_time", "gpu_lock.lock_timeout")).notes)
    assert "3.0 s" in notes
    assert "heartbeat" in notes


def test_growth_of_an_idle_store_is_counted_of_one_percent_of_a_core() -> None:
    """Twice nearly nothing is chance; from there to work is growth."""
    assert judged(baseline=found(redis_cpu=0.002), redis_cpu=0.006).passed
    verdict = judged(baseline=found(redis_cpu=0.0), redis_cpu=0.006)
    assert verdict.results["redis_cpu_increase"] == pytest.approx(0.6)
    assert outcome(verdict, "redis_cpu") == "failed"


def test_a_verdict_is_plain_json_whatever_was_measured() -> None:
    """Where nobody waited before, any wait is infinitely more, and JSON has no infinity."""
    verdict = judged(baseline=found(avg_wait_time=0.0))
    assert outcome(verdict, "waits") == "failed"
    plain = as_json(verdict)
    assert plain["criteria"][1]["value"] is None
    assert msgspec.json.decode(msgspec.json.encode(plain)) == plain


def test_waits_are_counted_of_those_that_got_their_gpu() -> None:
    """A task that gave up has no wait to speak of; it counts as a timeout."""
    outcomes = [Outcome(task="t", waited_s=float(n)) for n in (1, 2, 3)]
    outcomes += [
        Outcome(task="t", waited_s=50.0, timed_out=True, trouble="not free after 50 s"),
        Outcome(task="t", waited_s=0.0, trouble="LeaseLost"),
    ]
    result = measured(outcomes, cpu_s=0.5, wall_s=10.0)
    assert (result.tasks, result.success_rate, result.timeout_rate) == (5, 0.6, 0.2)
    assert (result.avg_wait_time, result.p50_wait_time, result.longest_wait_time) == (2.0, 2.0, 3.0)
    assert result.redis_cpu == 0.05
    assert result.troubles == ("not free after 50 s", "LeaseLost")


def test_no_task_at_all_is_no_success() -> None:
    """An empty trial validates nothing."""
    nothing = measured([], cpu_s=0.0, wall_s=0.0)
    assert nothing.success_rate == 0.0
    assert not judge(found(), nothing, mode="polling", changed=POLLS).passed
