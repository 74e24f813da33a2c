"""A staged rollout at one moment: where it is, who is in, what was counted. Values only; `rollout` moves them.

Times are in ms of the rollout's own clock, which counts only while a daemon drives, unless the name says wall clock.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from gpulockd.config.gates import Counted, Limits
from gpulockd.errors import ConfigConflict

Phase = Literal["holding", "paused", "awaiting", "finishing", "done", "returning", "returned"]
Unit = Literal["pools", "sessions"]

OVER: frozenset[Phase] = frozenset({"done", "returned"})
"""Phases in which nothing moves any more."""

IN_FORCE: frozenset[Phase] = frozenset({"holding", "paused", "awaiting", "finishing"})
"""Phases in which the share goes by the candidate."""


class NotNow(ConfigConflict):
    """The rollout cannot do that now: `gpulockd config rollout` says where it is."""

    phase: str = ""


class RolloutLimits(Limits, Protocol):
    """What a rollout goes by (`rollout:` of the settings)."""

    @property
    def require_approval(self) -> bool:
        """Whether a person must agree before all go by the candidate."""


class Agreed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a rollout goes by from its beginning to its end, whatever the configuration says meanwhile.

    Its candidate is in force where the one that drives may be, and must not be judged by limits of its own.
    """

    success_rate: float = 0.95
    failure_rate: float = 0.1
    timeout_rate: float = 0.05
    redis_cpu: float = 0.8
    least_samples: int = 20
    require_approval: bool = True

    @classmethod
    def of(cls, limits: RolloutLimits) -> Agreed:
        """Return the limits that are in force now."""
        return cls(**{name: getattr(limits, name) for name in cls.__struct_fields__})


class Stage(msgspec.Struct, frozen=True):
    """A share of all (0 < share <= 1), and how long it must hold (in seconds)."""

    share: float
    hold_s: float


class Said(msgspec.Struct, frozen=True):
    """Why the rollout moved: a line for the audit, and who says it."""

    text: str
    author: str = "rollout"


class Spell(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where and when a candidate was in force: what happened under it is no news of the revision that all others had.

    `pools` are all that had it at any time, `below` the highest place of their sessions; `from_ms` to `to_ms` is the
    server's wall clock, `to_ms` 0 while it is not taken back everywhere.
    """

    rollout: str
    unit: Unit
    pools: tuple[str, ...] = ()
    below: float = 0.0
    from_ms: int = 0
    to_ms: int = 0


class Rollout(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A staged rollout at one moment.

    `tree` and `unset` are the candidate: what it sets over the live configuration, and takes out of it. `base` is the
    revision that all others go by; `pools` and `below` who is in: those pools whole, or of the one pool the sessions
    whose place is below. `began_ms` is when the stage began, `paused_ms` how far it was when it was paused (both on
    the rollout's clock), `began_wall_ms` when its candidate came into force (the server's wall clock), `positions` the
    last event counted of each pool, `untold` what the audit does not say yet, `result` the revision that it became,
    `spells` when and where its candidate was in force, after those of the rollouts before, `limits` those in force
    before it began.
    """

    id: str
    author: str
    reason: str
    stages: tuple[Stage, ...]
    unit: Unit
    base: int
    tree: dict[str, Any] = {}
    unset: tuple[str, ...] = ()
    validated: str = ""
    phase: Phase = "holding"
    stage: int = 0
    began_ms: int = 0
    paused_ms: int = 0
    began_wall_ms: int = 0
    pools: tuple[str, ...] = ()
    below: float = 1.0
    counted: Counted = Counted()
    positions: dict[str, int] = {}
    untold: tuple[Said, ...] = ()
    why: str = ""
    approved_by: str = ""
    result: int | None = None
    spells: tuple[Spell, ...] = ()
    limits: Agreed = Agreed()

    @property
    def over(self) -> bool:
        """Whether nothing moves any more."""
        return self.phase in OVER

    @property
    def now(self) -> Stage:
        """The stage that it is in."""
        return self.stages[self.stage]

    @property
    def last(self) -> bool:
        """Whether no stage but all comes next."""
        return self.stage + 1 >= len(self.stages)

    def carries(self, pool: str) -> float:
        """Below which place the sessions of that pool go by the candidate: 1 all of them, 0 none."""
        return self.below if self.phase in IN_FORCE and pool in self.pools else 0.0

    def held_ms(self, elapsed_ms: int) -> int:
        """How long the stage has held, without the time that it was paused (in ms)."""
        return self.paused_ms if self.phase == "paused" else max(0, elapsed_ms - self.began_ms)

    @property
    def who(self) -> str:
        """Who is in, in words."""
        if self.unit == "pools":
            return f"{len(self.pools)} host{'' if len(self.pools) == 1 else 's'} ({', '.join(self.pools)})"
        return f"worker sessions of {self.pools[0]} (places below {self.below:.3f})"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is so now: the rollout's clock and the server's wall clock (ms), and who lives.

    `living` are the pools whose daemon lives; `places` those of the living worker sessions, where sessions are the
    unit; `revision` is the current one, `rolled_back` whether it, or one since the rollout's base, was a way back;
    `carrying` are the pools that publish the candidate.
    """

    elapsed_ms: int
    wall_ms: int
    living: tuple[str, ...] = ()
    places: tuple[float, ...] = ()
    revision: int = 0
    rolled_back: bool = False
    carrying: frozenset[str] = frozenset()


class Tell(msgspec.Struct, frozen=True):
    """Write these lines to the audit."""

    lines: tuple[Said, ...]


class Revise(msgspec.Struct, frozen=True):
    """Make the candidate the live configuration of all: a revision like any other."""


class TakeBack(msgspec.Struct, frozen=True):
    """Take the candidate back in these pools, also for a daemon that does not run."""

    pools: tuple[str, ...]


Instruction = Tell | Revise | TakeBack
