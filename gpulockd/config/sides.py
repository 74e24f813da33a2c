"""One side of a change: the settings that were in force, and what was measured under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gpulockd.ledger.distribution import Distribution
from gpulockd.ledger.measured import Measured


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """Before or after a change. Waits are of what was acquired, in seconds; rates and loads are shares of 1.

    `since` and `until` are unix seconds. What was not measured is None, never 0. `exact`: counted from the events, else
    from whole minutes. `missed`: events lost to the count (None: an unknown number).
    """

    poll_interval: float | None = None
    avg_wait_time: float | None = None
    timeout_rate: float | None = None
    since: float | None = None
    until: float | None = None
    attempts: int = 0
    success_rate: float | None = None
    failure_rate: float | None = None
    wait_p50: float | None = None
    wait_p95: float | None = None
    holds: int = 0
    holds_per_hour: float | None = None
    redis_cpu: float | None = None
    redis_cpu_most: float | None = None
    busy_share: float | None = None
    exact: bool = True
    missed: int | None = 0
    gpu_lock: dict[str, Any] = {}


UNKNOWN = Side()
"""The side of a change that never was."""


def side(measured: Measured, gpu_lock: Mapping[str, Any]) -> Side:
    """Return what was measured under these settings (`gpu_lock` block; empty if they are not known)."""
    tally, some = measured.tally, measured.samples > 0
    return Side(
        poll_interval=gpu_lock.get("poll_interval"),
        avg_wait_time=_seconds(tally.waits.mean_ms),
        timeout_rate=_share(measured.timeout_rate if some else None),
        since=measured.from_ms / 1000,
        until=measured.to_ms / 1000,
        attempts=measured.samples,
        success_rate=_share(measured.success_rate if some else None),
        failure_rate=_share(measured.failure_rate if some else None),
        wait_p50=quantile_s(tally.waits, 0.5),
        wait_p95=quantile_s(tally.waits, 0.95),
        holds=tally.holds.count,
        holds_per_hour=None if measured.holds_per_hour is None else round(measured.holds_per_hour, 1),
        redis_cpu=_share(measured.redis_cpu),
        redis_cpu_most=_share(measured.redis_cpu_most),
        busy_share=_share(measured.busy_share),
        exact=measured.exact,
        missed=_missed(measured),
        gpu_lock=dict(gpu_lock),
    )


def quantile_s(durations: Distribution, share: float) -> float | None:
    """Return a quantile (in seconds); None if nothing was counted."""
    return _seconds(durations.quantile_ms(share))


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else round(ms / 1000, 3)


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _missed(measured: Measured) -> int | None:
    known = [gap.missed for gap in measured.gaps if gap.missed is not None]
    return sum(known) if len(known) == len(measured.gaps) else None
