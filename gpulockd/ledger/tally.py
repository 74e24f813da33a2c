"""What happened in a time, counted: the outcomes of attempts, the ends of holds, and every kind of event.

An attempt is one request that the lock has decided: acquired, timed out, or failed (its process died while it waited,
or an operator ended it). One that its own program gave up is *withdrawn*: neither success nor failure, and no attempt.
A question that would not wait (`max_wait_time=0`) and found the gpu busy is none either: it leaves no event.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from gpulockd.events import (
    Event,
    LockAcquired,
    LockExpired,
    LockReleased,
    LockRevoked,
    StopRequested,
    TimeoutWarned,
    WaitAbandoned,
    WaitTimedOut,
)
from gpulockd.ledger.distribution import Distribution

Outcome = Literal["acquired", "timed_out", "failed", "withdrawn"]

OWN_CHOICE = frozenset({"abandoned", "parked", "released"})
"""Reasons by which a waiter left of its own accord."""

HOLDS = (LockReleased, LockExpired, LockRevoked)
"""What ends a hold."""

WITH_REASONS = (LockExpired, LockRevoked, TimeoutWarned, StopRequested)
"""What is counted by its reason as well: why a lease was ended, which level of age it has reached."""

PLANNED = "planned"
"""What a lease that lasted as long as it was asked for is counted by, instead of its reason: nobody was lost."""

MOST_WORDS = 96
"""A tally grows no further by reasons that it has not seen."""

_REASON = re.compile(r"[a-z0-9_]{1,32}")


def outcome(event: Event) -> Outcome | None:
    """Return how an attempt ended with this event; None if none did.

    A ticket that was granted but not yet confirmed ends as `WaitAbandoned` for whatever reason. `WaitTimedOut` with a
    hold is a lease whose acquisition was counted when it began. What a daemon tries for itself is no attempt.
    """
    if event.is_probe:
        return None
    if isinstance(event, LockAcquired):
        return "acquired"
    if isinstance(event, WaitTimedOut):
        return "timed_out" if event.held_ms is None else None
    if isinstance(event, WaitAbandoned):
        if event.reason == "timed_out":
            return "timed_out"
        return "withdrawn" if event.reason in OWN_CHOICE else "failed"
    return None


class Facts(msgspec.Struct, frozen=True):
    """What is counted of one event: words, a kind with its reason, a wait (of what was acquired) and a hold (ms)."""

    seq: int
    outcome: Outcome | None
    words: tuple[str, ...]
    reason: tuple[str, str] | None = None
    waited_ms: int | None = None
    held_ms: int | None = None

    @classmethod
    def of(cls, event: Event) -> Facts:
        """Return what is counted of that event: nothing of one that a daemon caused to check itself."""
        if event.is_probe:
            return cls(event.seq, None, ())
        kind, ended, reason = str(event.__struct_config__.tag), outcome(event), None
        if isinstance(event, WITH_REASONS):
            said = PLANNED if isinstance(event, LockExpired) and event.planned else event.reason or ""
            reason = (kind, said if _REASON.fullmatch(said) else "other")
        return cls(
            event.seq,
            ended,
            (kind,) if ended is None else (kind, ended),
            reason,
            event.waited_ms if ended == "acquired" else None,
            event.held_ms if isinstance(event, HOLDS) else None,
        )


class Tally(msgspec.Struct, array_like=True):
    """Counts by word, and how long waits (of what was acquired) and holds took.

    `through` is the seq of the last event that was counted: one that comes again counts once. Words are the outcomes,
    the kinds of events ("lock_released"), and some of them with their reason ("lock_revoked:revoked"); `missed` counts
    events that nobody has seen.
    """

    through: int = 0
    counts: dict[str, int] = {}
    waits: Distribution = msgspec.field(default_factory=Distribution)
    holds: Distribution = msgspec.field(default_factory=Distribution)

    def count(self, word: str, by: int = 1) -> None:
        """Count a word."""
        self.counts[word] = self.counts.get(word, 0) + by

    def take(self, facts: Facts) -> None:
        """Count an event, unless it has been counted."""
        if facts.seq <= self.through:
            return
        self.through = facts.seq
        for word in facts.words:
            self.count(word)
        if facts.reason is not None:
            self._count_reason(*facts.reason)
        if facts.waited_ms is not None:
            self.waits.add(facts.waited_ms)
        if facts.held_ms is not None:
            self.holds.add(facts.held_ms)

    def _count_reason(self, kind: str, reason: str) -> None:
        word = f"{kind}:{reason}"
        known = word in self.counts or len(self.counts) < MOST_WORDS
        self.count(word if known else f"{kind}:other")

    def take_in(self, other: Tally) -> None:
        """Count all that `other` has counted."""
        self.through = max(self.through, other.through)
        for word, count in other.counts.items():
            self.count(word, count)
        self.waits.take_in(other.waits)
        self.holds.take_in(other.holds)

    def of(self, word: str) -> int:
        """How often that word was counted."""
        return self.counts.get(word, 0)

    @property
    def attempts(self) -> int:
        """How many attempts the lock has decided."""
        return self.of("acquired") + self.of("timed_out") + self.of("failed")

    @property
    def success_rate(self) -> float:
        """The share of attempts that got the lock; 1.0 before any attempt."""
        return self.of("acquired") / self.attempts if self.attempts else 1.0

    @property
    def timeout_rate(self) -> float:
        """The share of attempts whose wait limit was over first; 0.0 before any attempt."""
        return self.of("timed_out") / self.attempts if self.attempts else 0.0

    @property
    def recoveries(self) -> int:
        """How many leases were ended for their holder: it died, was cut off, let its time pass, or was made to stop."""
        return self.lost - self.of("lock_revoked:operator")

    @property
    def planned_ends(self) -> int:
        """How many leases lasted as long as they were asked for."""
        return self.of(f"lock_expired:{PLANNED}")

    @property
    def lost(self) -> int:
        """How many leases ended without their holder."""
        return self.of("lock_expired") + self.of("lock_revoked") - self.planned_ends

    @property
    def failed_recoveries(self) -> int:
        """How many gpus had to be set apart because something stayed on them."""
        return self.of("gpu_quarantined")

    @property
    def limits_reached(self) -> dict[str, int]:
        """How many leases have reached each level of age; "hard" ones lose theirs, unless nothing may be recovered."""
        reached = {
            level: self.of(f"timeout_warned:{level}") + self.of(f"stop_requested:{level}")
            for level in ("warning", "soft", "hard")
        }
        return reached | {"hard": reached["hard"] + self.of("lock_revoked:hard_timeout")}

    @property
    def cleanups(self) -> dict[str, int]:
        """What was cleared away after somebody, by kind: sessions of lost processes, gpus after a loss."""
        return {"session": self.of("session_lost"), "gpu": self.of("gpu_settled")}

    @property
    def heartbeat_failure_rate(self) -> float:
        """Missed heartbeats per lease that began, at most 1.0; 0.0 if none was missed."""
        missed = self.of("heartbeat_missed")
        return min(1.0, missed / max(1, self.of("acquired")))


RECENT_OUTCOMES = 20
"""How many of the last attempts `recent_*` rates look at."""

_LETTERS = {"acquired": "s", "timed_out": "t", "failed": "f"}


def recent_with(recent: str, ended: Outcome | None) -> str:
    """Return the last outcomes with one more: "s" success, "t" timed out, "f" failed, the latest last."""
    return (recent + _LETTERS.get(ended or "", ""))[-RECENT_OUTCOMES:]


def recent_success_rate(recent: str) -> float:
    """Return the share of the last attempts that got the lock; 1.0 before any."""
    return recent.count("s") / len(recent) if recent else 1.0


def recent_timeout_rate(recent: str) -> float:
    """Return the share of the last attempts that timed out; 0.0 before any."""
    return recent.count("t") / len(recent) if recent else 0.0
