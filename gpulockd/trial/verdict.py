"""What may be concluded from a trial. Pure: two measurements and what the change can reach in, a verdict out.

The limits are those of the requirement GPU_LOCK_CONFIG_001: success at least 95 %, mean wait at least 30 % less, the
store's CPU less than 50 % more, timeouts below 5 %. A criterion that this change or this trial could not meet or miss
has an outcome of its own; it is never called met.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from gpulockd.trial.measured import Measured

LEAST_SUCCESS = 0.95
MOST_OF_BASELINE_WAIT = 0.7
WAIT_CHANGE = -0.3
"""The same as a change of the mean wait."""
MOST_CPU_GROWTH = 0.5
MOST_TIMEOUTS = 0.05
LEAST_CPU = 0.01
"""An idle store takes less of a core than this, and by chance twice as much; growth is counted of at least this."""
WORSE_WAIT = 1.3
"""How much longer than the baseline's the waits may be where the change cannot act on them: more is no chance."""
NOISE_S = 0.05

Mode = Literal["events", "polling"]
Outcome = Literal["passed", "failed", "not_exercised", "does_not_apply"]
Reach = Literal["waits", "polls", "none"]
"""What a change can act on: waits as they are, waits only while programs poll, or no waits at all."""

POLLS = ("poll_interval", "max_poll_interval", "exponential_backoff")
NO_WAITS = (
    *("gpu_lock_monitor.", "web.", "notify.", "alerts", "config.", "rollout.", "profiles.", "pool"),
    *("gpu_lock.lock_timeout", "gpu_lock.max_wait_time", "gpus.foreign"),
)
WRONG_MODE = "no program polled: poll settings are used only while notifications are away; measure with --polling"
NO_REACH = "nothing in this change acts on waits"


class Criterion(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is judged: what was found, what is asked for, and how it came out."""

    name: str
    outcome: Outcome
    value: float
    limit: float
    text: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a candidate is validated (`passed`), in which mode of waiting, and why. `changed`: paths that differ."""

    passed: bool
    mode: Mode
    summary: str
    changed: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    results: dict[str, float]
    baseline: Measured
    candidate: Measured
    notes: tuple[str, ...] = ()


def reach_of(changed: Iterable[str]) -> Reach:
    """Say what a change of these paths can act on.

    :param changed: such as "gpu_lock.poll_interval", "tasks.whisper.max_wait_time"
    """
    found = {_reach(path) for path in changed}
    return "waits" if "waits" in found else "polls" if "polls" in found else "none"


def _reach(path: str) -> Reach:
    last = path.rpartition(".")[2]
    if last in POLLS:
        return "polls"
    if path.startswith(NO_WAITS) or path.startswith("tasks."):
        return "none"
    return "waits"


def judge(baseline: Measured, candidate: Measured, *, mode: Mode, changed: Iterable[str]) -> Verdict:
    """Compare what was measured under two configurations that differ in `changed`."""
    paths = tuple(changed)
    criteria = (
        _success(candidate),
        _waits(baseline, candidate, mode, reach_of(paths)),
        _cpu(baseline, candidate),
        _timeouts(candidate),
    )
    passed = all(criterion.outcome in ("passed", "does_not_apply") for criterion in criteria)
    return Verdict(
        passed=passed,
        mode=mode,
        summary=_summary(criteria, passed=passed),
        changed=paths,
        criteria=criteria,
        results=_results(baseline, candidate),
        baseline=baseline,
        candidate=candidate,
        notes=notes_of(candidate, paths),
    )


def growth(before: float, after: float) -> float:
    """How much more `after` is than `before`, as a share of it; without a before, any after is infinitely more."""
    if before <= 0:
        return 0.0 if after <= 0 else float("inf")
    return after / before - 1


def cpu_growth(baseline: Measured, candidate: Measured) -> float:
    """How much more CPU the store took, as a share of what it took before, or of 1 % of a core if that was less."""
    return (candidate.redis_cpu - baseline.redis_cpu) / max(baseline.redis_cpu, LEAST_CPU)


def _results(baseline: Measured, candidate: Measured) -> dict[str, float]:
    """The numbers under the names of the requirement."""
    return {
        "success_rate": candidate.success_rate,
        "avg_wait_time": candidate.avg_wait_time,
        "redis_cpu_increase": cpu_growth(baseline, candidate),
        "timeout_rate": candidate.timeout_rate,
    }


def _success(candidate: Measured) -> Criterion:
    return _criterion(
        "success",
        candidate.success_rate >= LEAST_SUCCESS,
        candidate.success_rate,
        LEAST_SUCCESS,
        f"{candidate.success_rate:.1%} of {candidate.tasks} tasks (at least {LEAST_SUCCESS:.0%})",
    )


def _timeouts(candidate: Measured) -> Criterion:
    return _criterion(
        "timeouts",
        candidate.timeout_rate < MOST_TIMEOUTS,
        candidate.timeout_rate,
        MOST_TIMEOUTS,
        f"{candidate.timeout_rate:.1%} (below {MOST_TIMEOUTS:.0%})",
    )


def _cpu(baseline: Measured, candidate: Measured) -> Criterion:
    more = cpu_growth(baseline, candidate)
    text = (
        f"{baseline.redis_cpu:.2%} -> {candidate.redis_cpu:.2%} of a core, {_compared(more)} "
        f"(must be less than {MOST_CPU_GROWTH:.0%} more)"
    )
    return _criterion("redis_cpu", more < MOST_CPU_GROWTH, more, MOST_CPU_GROWTH, text)


def _waits(baseline: Measured, candidate: Measured, mode: Mode, reach: Reach) -> Criterion:
    before_s, after_s = baseline.avg_wait_time, candidate.avg_wait_time
    more = growth(before_s, after_s)
    limit = WAIT_CHANGE
    text = f"{before_s:.2f} s -> {after_s:.2f} s on average, {_compared(more)}"
    acts = reach == "waits" or (reach == "polls" and mode == "polling")
    if acts:
        text += f" (must be more than {-limit:.0%} less)"
        # As documented: less than 70 % of a wait, so where nobody waited nothing can become better.
        return _criterion("waits", after_s < MOST_OF_BASELINE_WAIT * before_s, more, limit, text)
    why = WRONG_MODE if reach == "polls" else NO_REACH
    if after_s > WORSE_WAIT * before_s + NOISE_S:
        return _criterion("waits", False, more, limit, f"{text}: far more, though {why}")
    outcome: Outcome = "not_exercised" if reach == "polls" else "does_not_apply"
    return Criterion(name="waits", outcome=outcome, value=more, limit=limit, text=f"{text}; {why}")


def _compared(more: float) -> str:
    """A growth in words: "15% less"."""
    if more == float("inf"):
        return "where there was none"
    return "the same" if round(more, 2) == 0 else f"{abs(more):.0%} {'more' if more > 0 else 'less'}"


def _criterion(name: str, holds: bool, value: float, limit: float, text: str) -> Criterion:
    return Criterion(name=name, outcome="passed" if holds else "failed", value=value, limit=limit, text=text)


def _summary(criteria: tuple[Criterion, ...], *, passed: bool) -> str:
    if passed:
        idle = [criterion.name for criterion in criteria if criterion.outcome == "does_not_apply"]
        return "validated" + (f"; {', '.join(idle)} cannot be judged by this change" if idle else "")
    failed = [criterion.name for criterion in criteria if criterion.outcome == "failed"]
    if failed:
        return f"not validated: {', '.join(failed)} not met"
    return "not validated: what the change acts on was not exercised; measure with --polling"


def notes_of(candidate: Measured, changed: Iterable[str]) -> tuple[str, ...]:
    """Say what a trial of a minute could not show of this change."""
    found = []
    if any(path.endswith("max_wait_time") for path in changed):
        found.append(
            f"the longest wait here was {candidate.longest_wait_time:.1f} s; whether your own waits stay below "
            "max_wait_time, 'gpulockd config set … --dry-run' tells from what was recorded"
        )
    if any(path.endswith("lock_timeout") for path in changed):
        found.append("lock_timeout ends only leases whose heartbeat has stopped; no task of the trial stops its own")
    return tuple(found)


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as plain values; what is infinite is null."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(verdict))
    return plain
