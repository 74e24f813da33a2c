"""The health score of a pool: one number from 0 to 100 that a person can check by hand."""

from __future__ import annotations

import msgspec

from gpulockd.ledger.tally import Tally, recent_success_rate


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the score: what was measured, and how many of its `weight` points it is worth."""

    name: str
    value: float
    weight: float
    points: float


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """All points at `good` or better, none at `bad` or worse, in between in proportion."""

    name: str
    weight: float
    good: float
    bad: float

    def part(self, value: float) -> Part:
        """Return what this value is worth."""
        share = (value - self.bad) / (self.good - self.bad)
        return Part(
            name=self.name, value=value, weight=self.weight, points=round(self.weight * min(1.0, max(0.0, share)), 2)
        )


AIMS = (
    Aim(name="success_rate", weight=30, good=0.95, bad=0.8),
    Aim(name="recent_success_rate", weight=10, good=0.95, bad=0.7),
    Aim(name="timeout_rate", weight=20, good=0.05, bad=0.2),
    Aim(name="heartbeat_failure_rate", weight=10, good=0.02, bad=0.1),
    Aim(name="recovery_success_rate", weight=10, good=0.95, bad=0.5),
    Aim(name="dead_locks", weight=20, good=0.0, bad=1.0),
)
"""`good` is the documented aim (success above 95 %, timeouts below 5 %, heartbeats above 98 %, recoveries above 95 %);
`bad` of the first three is where the documented health check calls the lock unhealthy (0.8, 0.7, 0.2)."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The score, and the parts it is the sum of."""

    score: float
    parts: tuple[Part, ...]


def health(window: Tally, recent: str, dead_locks: int) -> Health:
    """Return the health of a pool: the sum of the points of `AIMS`, 100 while nothing has happened.

    :param window: what was counted in the time that is judged
    :param recent: the last outcomes as letters (`Book.recent`)
    :param dead_locks: how many leases look dead (`suspicions`)
    """
    lost = max(window.recoveries, window.failed_recoveries)
    values = (
        window.success_rate,
        recent_success_rate(recent),
        window.timeout_rate,
        window.heartbeat_failure_rate,
        1.0 - window.failed_recoveries / lost if lost else 1.0,
        float(dead_locks),
    )
    parts = tuple(aim.part(value) for aim, value in zip(AIMS, values, strict=True))
    return Health(score=round(sum(part.points for part in parts), 1), parts=parts)
