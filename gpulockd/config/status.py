"""How a system is, in one word: healthy, warning or critical."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from gpulockd.model import GpuRecord

Status = Literal["healthy", "warning", "critical"]

WARNING_TIMEOUTS, CRITICAL_TIMEOUTS = 0.1, 0.2
WARNING_SUCCESSES, CRITICAL_SUCCESSES = 0.8, 0.5
"""Shares of the last attempts; the documented health check calls a lock unhealthy from 0.2 and below 0.8 on."""

NOT_WELL = frozenset({"quarantined", "lost"})


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the word is made of: whether the store answers, how the cards are, how the last attempts ended."""

    store_answers: bool = True
    gpus: int = 0
    gpus_not_well: int = 0
    recent_success_rate: float = 1.0
    recent_timeout_rate: float = 0.0


def gpus_not_well(records: Iterable[GpuRecord]) -> int:
    """Return how many gpus cannot be used until somebody sees to them."""
    return sum(record.state in NOT_WELL for record in records)


def overall_status(facts: Facts) -> Status:
    """Return the word. With no attempts yet a system is healthy."""
    if not facts.store_answers or (facts.gpus and facts.gpus_not_well >= facts.gpus):
        return "critical"
    if facts.recent_timeout_rate > CRITICAL_TIMEOUTS or facts.recent_success_rate < CRITICAL_SUCCESSES:
        return "critical"
    if facts.gpus_not_well or facts.recent_timeout_rate > WARNING_TIMEOUTS:
        return "warning"
    return "warning" if facts.recent_success_rate < WARNING_SUCCESSES else "healthy"


def why_critical(facts: Facts) -> str:
    """Return in words why a system is critical."""
    if not facts.store_answers:
        return "critical: the store does not answer"
    if facts.gpus and facts.gpus_not_well >= facts.gpus:
        return f"critical: none of the {facts.gpus} gpus can be used"
    got, late = facts.recent_success_rate, facts.recent_timeout_rate
    return f"critical: of the last attempts {late:.1%} timed out and {got:.1%} got the lock; look again in a while"
