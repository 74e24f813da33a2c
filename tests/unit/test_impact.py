"""Before and after a change: the documented fields, what is claimed, and what is not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpulockd.config.advice import NO_DIFFERENCE, RULES, TIMEOUTS_ROSE, advice, beyond_chance
from gpulockd.config.impact import LONGEST_MS, NO_CHANGE, Impact, change, impact, in_words, iso, summary, windows
from gpulockd.config.sides import UNKNOWN, Side
from gpulockd.ledger.distribution import Distribution
from gpulockd.ledger.load import Load
from gpulockd.ledger.measured import Measured
from gpulockd.ledger.recorded import Gap
from gpulockd.ledger.tally import Tally

CHANGE_MS = 1_766_570_400_000
HOUR_MS = 3_600_000


def measured(
    waits_ms: list[int] | None = None, *, timed_out: int = 0, failed: int = 0, from_ms: int = CHANGE_MS, **other: Any
) -> Measured:
    """An hour in which so many got the lock after these waits, and so many did not."""
    waits = Distribution.of(waits_ms or [])
    counts = {"acquired": waits.count, "timed_out": timed_out, "failed": failed}
    tally = Tally(counts=counts, waits=waits, holds=Distribution.of([1000] * waits.count))
    other.setdefault("load", Load())
    return Measured(pool="p", from_ms=from_ms, to_ms=from_ms + HOUR_MS, exact=False, tally=tally, **other)


def a_side(attempts: int = 100, **known: Any) -> Side:
    """A side with attempts enough and calm figures."""
    calm = {"avg_wait_time": 10.0, "timeout_rate": 0.02, "success_rate": 0.98, "wait_p95": 20.0, "redis_cpu": 0.05}
    return Side(attempts=attempts, **(calm | known))


def test_the_documented_example_comes_out_as_it_is_documented() -> None:
    """B-505 to B-509: tools of users read exactly these fields."""
    before = measured([15_200] * 98, timed_out=2, from_ms=CHANGE_MS - HOUR_MS)
    after = measured([4_800] * 97, timed_out=3)
    found = impact(
        change_ms=CHANGE_MS,
        before=before,
        after=after,
        gpu_lock_before={"poll_interval": 2.0},
        gpu_lock_after={"poll_interval": 0.5},
    )
    said = msgspec.json.decode(msgspec.json.encode(found))
    assert said["config_change_time"] == "2025-12-24T10:00:00Z"
    documented = ("poll_interval", "avg_wait_time", "timeout_rate")
    assert [said["before"][name] for name in documented] == [2, 15.2, 0.02]
    assert [said["after"][name] for name in documented] == [0.5, 4.8, 0.03]
    assert list(said)[:4] == ["config_change_time", "before", "after", "impact_summary"]
    assert list(said["before"])[:3] == list(documented)
    shown = said["impact_summary"]
    assert shown["wait_time_improvement"] == "68% ↓"
    assert shown["timeout_rate_change"] == "50% ↑"
    assert shown["recommendation"] == "⚠️ 超时率上升,建议调整 max_wait_time"
    assert shown["enough_samples"] is True
    assert shown["timeouts_beyond_chance"] is False


def test_before_any_change_the_same_fields_are_null() -> None:
    """A script that reads a field must not have to ask first whether it exists."""
    said = msgspec.to_builtins(NO_CHANGE)
    assert said["config_change_time"] is None
    for part, names in (
        ("before", ("poll_interval", "avg_wait_time", "timeout_rate")),
        ("after", ("poll_interval", "avg_wait_time", "timeout_rate")),
        ("impact_summary", ("wait_time_improvement", "timeout_rate_change", "recommendation")),
    ):
        assert {name: said[part][name] for name in names} == dict.fromkeys(names)


@pytest.mark.parametrize(("before", "after"), [(19, 1000), (1000, 19), (0, 0), (19, 19)])
def test_with_too_few_attempts_on_a_side_nothing_is_claimed(before: int, after: int) -> None:
    """One lucky wait is no improvement."""
    found = summary(
        a_side(before, avg_wait_time=15.2), a_side(after, avg_wait_time=4.8, timeout_rate=0.5, success_rate=0.5)
    )
    assert found.enough_samples is False
    assert (found.wait_time_improvement, found.timeout_rate_change, found.timeouts_beyond_chance) == (None,) * 3
    assert found.recommendation == (
        f"too few attempts to compare: {before} before, {after} after, 20 on each side are needed"
    )
    assert TIMEOUTS_ROSE not in found.advice


def test_twenty_attempts_on_each_side_are_enough() -> None:
    """The limit itself counts."""
    assert summary(a_side(20, avg_wait_time=15.2), a_side(20, avg_wait_time=4.8)).wait_time_improvement == "68% ↓"
    assert summary(a_side(5), a_side(5), least_samples=5).enough_samples


def test_a_side_without_attempts_has_no_rates_and_no_waits() -> None:
    """Nothing measured is null: 0 % timeouts of nothing would look like success."""
    found = impact(
        change_ms=CHANGE_MS, before=measured(), after=measured(timed_out=30), gpu_lock_before={}, gpu_lock_after={}
    )
    assert (found.before.timeout_rate, found.before.avg_wait_time, found.before.success_rate) == (None, None, None)
    assert (found.before.redis_cpu, found.before.busy_share) == (None, None)
    assert (found.after.timeout_rate, found.after.avg_wait_time, found.after.failure_rate) == (1.0, None, 1.0)
    assert found.impact_summary.wait_time_improvement is None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (15.2, 4.8, "68% ↓"),
        (0.02, 0.03, "50% ↑"),
        (1.0, 1.0, "0%"),
        (1.0, 1.004, "0%"),
        (0.0, 0.0, "0%"),
        (0.0, 2.0, "2.0 → 2.0 ↑"),
        (2.0, 0.0, "100% ↓"),
        (None, 1.0, None),
        (1.0, None, None),
    ],
)
def test_a_change_is_a_percentage_where_there_is_one(
    before: float | None, after: float | None, said: str | None
) -> None:
    """From nothing to something there is no percentage, and no division by zero."""
    assert change(before, after, lambda value: "2.0") == said


def test_timeouts_that_were_none_before_are_said_as_they_are() -> None:
    """Infinitely more timeouts is no figure for a person."""
    found = summary(a_side(timeout_rate=0.0), a_side(timeout_rate=0.03))
    assert found.timeout_rate_change == "0% → 3% ↑"
    assert found.recommendation == TIMEOUTS_ROSE
    full = summary(a_side(timeout_rate=0.0), a_side(timeout_rate=1.0))
    assert full.timeout_rate_change == "0% → 100% ↑"


def test_windows_are_cut_by_the_changes_beside_them_and_at_seven_days() -> None:
    """B-502, B-503: each change begins a new baseline; two changes minutes apart do not see over each other."""
    week = windows(CHANGE_MS, last_ms=None, next_ms=None, now_ms=CHANGE_MS + 30 * 86_400_000)
    assert CHANGE_MS - week.before_from_ms == week.after_to_ms - CHANGE_MS == LONGEST_MS == 7 * 86_400_000
    young = windows(CHANGE_MS, last_ms=None, next_ms=None, now_ms=CHANGE_MS + 1000)
    assert young.after_to_ms == CHANGE_MS + 1000
    cut = windows(CHANGE_MS, last_ms=CHANGE_MS - 120_000, next_ms=CHANGE_MS + 60_000, now_ms=CHANGE_MS + HOUR_MS)
    assert (cut.before_from_ms, cut.after_to_ms) == (CHANGE_MS - 120_000, CHANGE_MS + 60_000)
    skewed = windows(CHANGE_MS, last_ms=CHANGE_MS + 5, next_ms=CHANGE_MS - 5, now_ms=CHANGE_MS - 9)
    assert skewed.before_from_ms == skewed.after_to_ms == CHANGE_MS


def test_load_and_throughput_stand_on_both_sides() -> None:
    """Shorter waits bought with a busy server are another result than shorter waits."""
    loads = [
        Load(HOUR_MS, HOUR_MS // 10, 2 * HOUR_MS, HOUR_MS, 150),
        Load(HOUR_MS, HOUR_MS // 5, HOUR_MS, HOUR_MS, 900),
    ]
    before, after = (measured([10] * 40, load=load) for load in loads)
    found = impact(change_ms=CHANGE_MS, before=before, after=after, gpu_lock_before={}, gpu_lock_after={})
    assert (found.before.redis_cpu, found.before.redis_cpu_most, found.before.busy_share) == (0.1, 0.15, 0.5)
    assert (found.after.redis_cpu, found.after.redis_cpu_most, found.after.busy_share) == (0.2, 0.9, 1.0)
    assert (found.before.holds, found.before.holds_per_hour) == (40, 40.0)
    assert found.impact_summary.redis_cpu_change == "100% ↑"
    assert any("Redis uses 20% of a core instead of 10%" in line for line in found.impact_summary.advice)
    assert any("held 100% of the time" in line for line in found.impact_summary.advice)


def test_events_that_were_lost_are_said_on_their_side() -> None:
    """A comparison with a hole in it must show the hole."""
    known = impact(
        change_ms=CHANGE_MS,
        before=measured(gaps=(Gap(1, 2, 30), Gap(3, 4, 12))),
        after=measured(gaps=(Gap(1, 2, None),)),
        gpu_lock_before={},
        gpu_lock_after={},
    )
    assert (known.before.missed, known.after.missed) == (42, None)


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ({}, {}, NO_DIFFERENCE),
        ({}, {"avg_wait_time": 5.0}, "keep it"),
        ({}, {"avg_wait_time": 20.0, "wait_p95": 40.0}, "waits grew from 10 s to 20 s"),
        ({}, {"wait_p95": 40.0}, "the longest waits grew"),
        ({}, {"timeout_rate": 0.01, "success_rate": 0.99}, "timeouts fell from 2.0% to 1.0%"),
        ({}, {"success_rate": 0.9}, "success fell from 98.0% to 90.0%"),
        ({"timeout_rate": 0.3}, {"timeout_rate": 0.2}, "20.0% of the attempts time out"),
        ({}, {"redis_cpu": 0.9}, "more than 80%: raise poll_interval"),
        ({}, {"busy_share": 0.99}, "waits come from load"),
    ],
)
def test_advice_follows_the_figures(before: dict[str, Any], after: dict[str, Any], word: str) -> None:
    """B-504: each rule speaks in the case that it is for."""
    assert any(word in line for line in advice(a_side(**before), a_side(**after)))


def test_waits_that_nobody_feels_are_no_reason_to_go_back() -> None:
    """18 ms that became 23 ms are 28 % more, and nothing at all."""
    short, longer = a_side(avg_wait_time=0.018, wait_p95=0.02), a_side(avg_wait_time=0.023, wait_p95=0.09)
    assert advice(short, longer) == (NO_DIFFERENCE,)
    assert advice(longer, short) == (NO_DIFFERENCE,)
    assert summary(short, longer).wait_time_improvement == "28% ↑"


def test_the_weightiest_advice_is_the_recommendation() -> None:
    """Rising timeouts come before shorter waits: in the documented case both are true."""
    found = summary(a_side(), a_side(avg_wait_time=1.0, timeout_rate=0.4, success_rate=0.6, redis_cpu=0.9))
    assert found.recommendation == TIMEOUTS_ROSE == found.advice[0]
    assert len(found.advice) == 5
    assert "keep it" not in " ".join(found.advice)


def test_a_busy_server_is_told_without_any_attempts() -> None:
    """Its load needs no attempts to be known."""
    said = advice(a_side(0), a_side(0, redis_cpu=0.95))
    assert said[0].startswith("too few attempts")
    assert "Redis uses 95% of a core" in said[1]


def test_every_rule_can_be_written_for_every_side_that_it_holds_for() -> None:
    """Figures that are missing must not break the sentence."""
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert not rule.holds(UNKNOWN, UNKNOWN)
        assert rule.says.format(b=a_side(busy_share=0.5), a=a_side(busy_share=0.99))


def test_a_difference_is_compared_with_chance() -> None:
    """Two of a hundred against three of a hundred is what dice do; of ten thousand it is not."""
    rate = lambda side: side.timeout_rate  # noqa: E731  as callers write it
    two, three = a_side(timeout_rate=0.02), a_side(timeout_rate=0.03)
    assert beyond_chance(two, three, rate) is False
    many = (msgspec.structs.replace(two, attempts=10_000), msgspec.structs.replace(three, attempts=10_000))
    assert beyond_chance(*many, rate) is True
    assert beyond_chance(a_side(timeout_rate=0.0), a_side(timeout_rate=0.0), rate) is False
    assert beyond_chance(UNKNOWN, three, rate) is None


def test_moments_are_in_utc_with_a_z() -> None:
    """B-506."""
    assert iso(CHANGE_MS + 999) == "2025-12-24T10:00:00Z"
    assert Impact().config_change_time is None


def test_an_impact_fits_in_a_line() -> None:
    """The effect of a change is kept with its revision when the minutes are long gone."""
    before, after = a_side(120, avg_wait_time=15.2), a_side(80, avg_wait_time=4.8, timeout_rate=0.03)
    said = summary(before, after)
    found = Impact(config_change_time=iso(CHANGE_MS), before=before, after=after, impact_summary=said)
    assert in_words(found) == ("waits 68% ↓, p95 0%, timeouts 50% ↑, Redis CPU 0% (120 attempts before, 80 after)")
    few = Impact(config_change_time=iso(CHANGE_MS), impact_summary=summary(a_side(3), a_side(4)))
    assert in_words(few).startswith("too few attempts to compare: 3 before, 4 after")
    assert in_words(NO_CHANGE) == "nothing has changed yet"
