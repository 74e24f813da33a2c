"""What the routes about the past answer: moments in unix seconds, lengths in seconds."""

from __future__ import annotations

import msgspec

from gpulockd.web.monitoring_views import Spread, Suspected, TaskFacts


class PastHold(msgspec.Struct, frozen=True, kw_only=True):
    """A hold. `ended` null: it goes on. `how` released, expired or revoked; `reason` the ledger's word for why."""

    lease: str
    token: int | None
    task: str
    task_id: str
    gpus: tuple[str, ...]
    began: float
    ended: float | None
    waited_s: float | None
    held_s: float
    how: str | None
    reason: str | None


class PastWait(msgspec.Struct, frozen=True, kw_only=True):
    """A wait that is over. `outcome` acquired, timed_out, failed or withdrawn."""

    lease: str
    task: str
    task_id: str
    gpus: tuple[str, ...]
    began: float
    ended: float
    waited_s: float
    outcome: str
    reason: str | None


class PastView(msgspec.Struct, frozen=True, kw_only=True):
    """Holds and waits, the latest first, all of them from `from` on; `more`: there are more than asked for."""

    pool: str
    from_: float = msgspec.field(name="from")
    to: float
    holds: tuple[PastHold, ...]
    waits: tuple[PastWait, ...]
    more: bool


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """How many took at most so long (in seconds)."""

    le_s: float
    count: int


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took."""

    spread: Spread
    buckets: tuple[Bucket, ...]


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted in a time. `wait_s` and `hold_s` are sums, of what began and of what ended in it.

    `released`: given back, or over as planned (`ttl`); `lost`: ended without their holder.
    """

    attempts: int
    acquired: int
    timed_out: int
    failed: int
    withdrawn: int
    released: int
    lost: int
    wait_s: float
    hold_s: float


class SpanView(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted in a minute or hour."""

    at: float
    counts: Counts


class HealthPart(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured, and how many of its `weight` points it is worth."""

    name: str
    value: float
    weight: float
    points: float


class StatisticsView(msgspec.Struct, frozen=True, kw_only=True):
    """A window of the pool's statistics; score and suspicions are of now.

    `task`: the one that was asked for, null for all. With it `window`, `waits` and `holds` are of this task alone, by
    whole days from that of `from` on, and `spans` is null, for minutes and hours are not kept by task. Score, parts,
    suspicions and `missed_events` are always the pool's.
    """

    pool: str
    from_: float = msgspec.field(name="from")
    to: float
    task: str | None
    window: Counts
    waits: Histogram
    holds: Histogram
    spans: tuple[SpanView, ...] | None
    tasks: dict[str, TaskFacts]
    health_score: float
    health_parts: tuple[HealthPart, ...]
    deadlock_detected: bool
    suspicions: tuple[Suspected, ...]
    missed_events: int
