"""Whatever happens to a staged rollout, in whatever order: its law holds."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulockd.config.gates import tripped
from gpulockd.config.rollout import PATIENCE, begin, commanded, counted, moved, step
from gpulockd.config.staged import Agreed, Facts, NotNow, Revise, Rollout, Said, Stage

OUTCOMES = ["acquired", "acquired", "acquired", "timed_out", "failed", "withdrawn"]
NAMES = [f"h{n}" for n in range(8)]


LIMITS = Agreed(success_rate=0.9, failure_rate=0.2, timeout_rate=0.1, least_samples=5)
"""Limits that few attempts can reach."""

happenings = st.one_of(
    st.tuples(st.just("time"), st.integers(1, 30_000)),
    st.tuples(
        st.just("attempts"),
        st.lists(st.sampled_from(OUTCOMES), max_size=12),
    ),
    st.tuples(st.just("alert"), st.just("X")),
    st.tuples(st.just("cpu"), st.floats(0, 1)),
    st.tuples(st.just("living"), st.sets(st.sampled_from(NAMES), min_size=1)),
    st.tuples(st.just("places"), st.lists(st.floats(0, 1, exclude_max=True), max_size=12, unique=True)),
    st.tuples(st.just("revision"), st.sampled_from(["cli", "file", "rollback"])),
    st.tuples(st.just("command"), st.sampled_from(["approve", "pause", "resume", "abort"])),
    st.tuples(st.just("revised"), st.none()),
    st.tuples(st.just("goes_well"), st.integers(1, 30_000)),
    st.tuples(st.just("goes_well"), st.just(20_000)),
)


def share_of(share: float, living: int) -> int:
    """The share of the living ones, rounded up, without any rounding error."""
    return math.ceil(Fraction(str(share)) * living)


class Course:
    """A rollout to which things happen, and what must hold after each."""

    def __init__(self, unit: Any, approval: bool) -> None:
        self.limits = msgspec.structs.replace(LIMITS, require_approval=approval)
        self.facts = Facts(elapsed_ms=0, wall_ms=0, living=tuple(NAMES), places=(0.1, 0.5), revision=1)
        stages = (Stage(0.1, 10), Stage(0.5, 20))
        pools = ("h0",) if unit == "sessions" else ()
        self.rollout = begin(
            Rollout(id="r", author="a", reason="", stages=stages, unit=unit, base=1, pools=pools, limits=self.limits),
            self.facts,
        )

    def happen(self, what: str, value: Any) -> None:
        """Let it happen, and look."""
        before = self.rollout
        if what == "time":
            self.facts = msgspec.structs.replace(self.facts, elapsed_ms=self.facts.elapsed_ms + value)
        elif what == "goes_well":
            self.facts = msgspec.structs.replace(self.facts, elapsed_ms=self.facts.elapsed_ms + value)
            self.rollout = counted(self.rollout, {}, outcomes=["acquired"] * 20)
        elif what == "attempts":
            self.rollout = counted(self.rollout, {}, outcomes=value)
        elif what in ("alert", "cpu"):
            self.rollout = counted(self.rollout, {}, **{"alerts": [value]} if what == "alert" else {"cpu": value})
        elif what in ("living", "places"):
            self.facts = msgspec.structs.replace(self.facts, **{what: tuple(sorted(value))})
        elif what == "revision":
            number = self.facts.revision + 1
            self.facts = msgspec.structs.replace(self.facts, revision=number, rolled_back=value == "rollback")
        elif what == "command":
            self.command(value)
        elif what == "revised":
            self.rollout = moved(self.rollout, "revised", self.facts, Said("all"))
        self.look(self.rollout if what != "command" else before)

    def command(self, name: Any) -> None:
        """Let a person want something."""
        before = self.rollout
        try:
            self.rollout = commanded(before, name, self.facts, author="ops")
        except NotNow:
            return
        if name == "approve":
            assert step(before, self.facts)[0].phase == "awaiting"
            assert tripped(before.counted, self.limits) is None

    def look(self, before: Rollout) -> None:
        """A driver looks; then the law must hold."""
        looked_at = self.rollout
        self.rollout, todo = step(looked_at, self.facts)
        self.never_forward_through_a_closed_gate(looked_at)
        self.never_wider_than_the_share(looked_at)
        if before.phase in ("returning", "returned"):
            assert self.rollout.phase in ("returning", "returned"), "once it goes back, it only goes back"
            assert all(self.rollout.carries(name) == 0 for name in NAMES)
        if Revise() in todo and self.limits.require_approval:
            assert self.rollout.approved_by == "ops"

    def never_forward_through_a_closed_gate(self, before: Rollout) -> None:
        """A trip goes back at once; forward only after the hold, with all gates open."""
        now = self.rollout
        trip = tripped(before.counted, self.limits) if before.phase in ("holding", "paused", "awaiting") else None
        same_base = before.base == self.facts.revision
        if trip is not None and same_base:
            assert now.phase in ("returning", "returned")
        forward = now.stage > before.stage or (before.phase == "holding" and now.phase in ("awaiting", "finishing"))
        if forward:
            held_ms = before.held_ms(self.facts.elapsed_ms)
            assert before.phase == "holding"
            assert held_ms >= before.now.hold_s * 1000
            few = before.counted.attempts < self.limits.least_samples
            assert not few or held_ms >= PATIENCE * before.now.hold_s * 1000
            assert tripped(before.counted, self.limits, last_word=few) is None
            assert now.stage - before.stage <= 1

    def never_wider_than_the_share(self, before: Rollout) -> None:
        """Hosts as many as the share had when it was chosen, sessions as many as it has now."""
        now = self.rollout
        if now.unit == "pools" and now.pools != before.pools:
            assert set(now.pools) <= set(self.facts.living)
            assert len(now.pools) == share_of(now.now.share, len(self.facts.living))
        if now.unit == "sessions" and now.phase == "holding" and self.facts.places and before == now:
            inside = sum(place < now.below for place in self.facts.places)
            assert inside <= share_of(now.now.share, len(self.facts.places))


@settings(max_examples=150, deadline=None)
@given(unit=st.sampled_from(["pools", "sessions"]), approval=st.booleans(), course=st.lists(happenings, max_size=40))
def test_a_rollout_keeps_its_law_whatever_happens(unit: str, approval: bool, course: list[tuple[str, Any]]) -> None:
    """Never wider than the share, never forward through a closed gate, always back after a trip."""
    rolled = Course(unit, approval)
    for what, value in course:
        rolled.happen(what, value)
