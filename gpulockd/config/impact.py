"""Did a change help? What was measured before it and after it, side by side, and what that means in words.

A change begins a new baseline: neither side reaches over the change before or after it, nor over seven days.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from gpulockd.config.advice import LEAST_SAMPLES, advice, beyond_chance, few
from gpulockd.config.sides import UNKNOWN, Side, side
from gpulockd.ledger.measured import Measured

LONGEST_MS = 7 * 86_400_000
"""How long before and after a change is looked at (in ms)."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What the two sides mean. None where they cannot be compared: before any change, or for want of attempts.

    `timeouts_beyond_chance`: whether the timeout rates differ by more than chance explains. `advice` has all that is
    advised, `recommendation` the weightiest of it.
    """

    wait_time_improvement: str | None = None
    timeout_rate_change: str | None = None
    recommendation: str | None = None
    success_rate_change: str | None = None
    wait_p95_change: str | None = None
    holds_per_hour_change: str | None = None
    redis_cpu_change: str | None = None
    busy_share_change: str | None = None
    timeouts_beyond_chance: bool | None = None
    enough_samples: bool = False
    least_samples: int = LEAST_SAMPLES
    advice: tuple[str, ...] = ()


class Impact(msgspec.Struct, frozen=True, kw_only=True):
    """The impact of a change; `config_change_time` is ISO 8601 in UTC. Before any change all of it is None."""

    config_change_time: str | None = None
    before: Side = UNKNOWN
    after: Side = UNKNOWN
    impact_summary: Summary = Summary()
    revision: int | None = None
    pool: str | None = None
    author: str | None = None
    reason: str | None = None
    diff: tuple[dict[str, Any], ...] = ()


NO_CHANGE = Impact()


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """The times that are compared (wall clock, ms)."""

    before_from_ms: int
    change_ms: int
    after_to_ms: int


def windows(change_ms: int, *, last_ms: int | None, next_ms: int | None, now_ms: int) -> Windows:
    """Return what is compared: up to seven days on each side of a change, cut by the changes beside it.

    :param last_ms: when the configuration was changed last before it; None: it was not
    :param next_ms: when it was changed next; None: not yet
    """
    return Windows(
        before_from_ms=max(change_ms - LONGEST_MS, 0 if last_ms is None else min(last_ms, change_ms)),
        change_ms=change_ms,
        after_to_ms=max(change_ms, min(change_ms + LONGEST_MS, now_ms, now_ms if next_ms is None else next_ms)),
    )


def impact(
    *,
    change_ms: int,
    before: Measured,
    after: Measured,
    gpu_lock_before: Mapping[str, Any],
    gpu_lock_after: Mapping[str, Any],
    least_samples: int = LEAST_SAMPLES,
    revision: int | None = None,
    author: str | None = None,
    reason: str | None = None,
    diff: tuple[dict[str, Any], ...] = (),
) -> Impact:
    """Compare what was measured before and after a change (wall clock, ms) under these settings."""
    one, other = side(before, gpu_lock_before), side(after, gpu_lock_after)
    return Impact(
        config_change_time=iso(change_ms),
        before=one,
        after=other,
        impact_summary=summary(one, other, least_samples=least_samples),
        revision=revision,
        pool=after.pool,
        author=author,
        reason=reason,
        diff=diff,
    )


def summary(before: Side, after: Side, *, least_samples: int = LEAST_SAMPLES) -> Summary:
    """Return what the two sides mean; what rests on attempts is None where they are too few."""
    said = advice(before, after, least=least_samples)
    loads = Summary(
        recommendation=said[0],
        redis_cpu_change=change(before.redis_cpu, after.redis_cpu, _percent),
        busy_share_change=change(before.busy_share, after.busy_share, _percent),
        least_samples=least_samples,
        advice=said,
    )
    if few(before, after, least_samples) is not None:
        return loads
    return msgspec.structs.replace(
        loads,
        wait_time_improvement=change(before.avg_wait_time, after.avg_wait_time, _wait),
        timeout_rate_change=change(before.timeout_rate, after.timeout_rate, _percent),
        success_rate_change=change(before.success_rate, after.success_rate, _percent),
        wait_p95_change=change(before.wait_p95, after.wait_p95, _wait),
        holds_per_hour_change=change(before.holds_per_hour, after.holds_per_hour),
        timeouts_beyond_chance=beyond_chance(before, after, lambda of: of.timeout_rate),
        enough_samples=True,
    )


def in_words(found: Impact) -> str:
    """Return the impact in a line, such as a revision keeps as its outcome."""
    said = found.impact_summary
    if found.config_change_time is None or not said.enough_samples:
        return said.recommendation or "nothing has changed yet"
    parts = [f"{name} {value}" for name, value in _figures(said) if value is not None]
    return f"{', '.join(parts)} ({found.before.attempts} attempts before, {found.after.attempts} after)"


def _figures(said: Summary) -> tuple[tuple[str, str | None], ...]:
    return (
        ("waits", said.wait_time_improvement),
        ("p95", said.wait_p95_change),
        ("timeouts", said.timeout_rate_change),
        ("Redis CPU", said.redis_cpu_change),
    )


def change(before: float | None, after: float | None, shown: Callable[[float], str] = str) -> str | None:
    """Return how a value has changed: "68% ↓"; "0% → 3% ↑" where no percentage exists; None if one is not known.

    :param shown: writes a value where no percentage can be written
    """
    if before is None or after is None:
        return None
    if before == 0:
        return "0%" if after == 0 else f"{shown(before)} → {shown(after)} ↑"
    percent = round(100 * (after / before - 1))
    return "0%" if percent == 0 else f"{abs(percent)}% {'↑' if percent > 0 else '↓'}"


def iso(at_ms: int) -> str:
    """Return a moment of the wall clock (ms) as "2025-12-24T10:00:00Z"."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _wait(value: float) -> str:
    return f"{value:.3g} s"
