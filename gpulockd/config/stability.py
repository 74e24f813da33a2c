"""When a revision has run well, and when it must be undone: judged by what was counted since it is in force.

A rate of few attempts says nothing, so below the least number of samples nothing trips and nothing becomes stable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal

import msgspec

from gpulockd.ledger.tally import Tally
from gpulockd.settings import ConfigBlock


class Attempts(msgspec.Struct, frozen=True):
    """How attempts ended: what a pool has counted since its beginning, or the difference of two such counts."""

    acquired: int = 0
    timed_out: int = 0
    failed: int = 0

    @classmethod
    def of(cls, tally: Tally) -> Attempts:
        """The attempts of a tally."""
        return cls(tally.of("acquired"), tally.of("timed_out"), tally.of("failed"))

    @property
    def total(self) -> int:
        """How many there were."""
        return self.acquired + self.timed_out + self.failed

    @property
    def timeout_rate(self) -> float:
        """The share that timed out; 0.0 of none."""
        return self.timed_out / self.total if self.total else 0.0

    def minus(self, other: Attempts) -> Attempts | None:
        """Return what came after `other`; None if less was counted than then: the counts have begun anew."""
        left = (self.acquired - other.acquired, self.timed_out - other.timed_out, self.failed - other.failed)
        return Attempts(*left) if min(left) >= 0 else None


class Course:
    """The attempts of one pool since a revision is in force, and in the last so many seconds of that time."""

    def __init__(self, at_s: float, counted: Attempts, window_s: float) -> None:
        """:param counted: the counts when it came in force, at the moment `at_s`"""
        self._began = counted
        self._seen: deque[tuple[float, Attempts]] = deque([(at_s, counted)])
        self._window_s = window_s

    def __repr__(self) -> str:
        return f"<Course {self.since}>"

    @property
    def since(self) -> Attempts:
        """All attempts since the revision is in force."""
        return self._seen[-1][1].minus(self._began) or Attempts()

    @property
    def lately(self) -> Attempts:
        """The attempts of the last window, or of all the time if that is shorter."""
        return self._seen[-1][1].minus(self._seen[0][1]) or Attempts()

    def see(self, at_s: float, counted: Attempts) -> None:
        """Take the counts of a moment."""
        if counted.minus(self._seen[-1][1]) is None:  # the store has lost its data
            self._began = Attempts()
            self._seen = deque([(at_s, Attempts())])
        self._seen.append((at_s, counted))
        while len(self._seen) > 2 and self._seen[1][0] <= at_s - self._window_s:
            self._seen.popleft()


class Verdict(msgspec.Struct, frozen=True):
    """What is to be done about a revision, and why."""

    word: Literal["wait", "stable", "roll_back"]
    why: str


def judge(
    age_s: float,
    courses: Mapping[str, Course],
    before: Mapping[str, Attempts],
    rules: ConfigBlock,
    recounted: Mapping[str, Attempts] | None = None,
) -> Verdict:
    """Judge a revision that is not stable.

    :param age_s: how long it is in force (in seconds)
    :param courses: what was counted since, by pool
    :param before: the attempts of each pool before it: a rate that it has not made worse is not its fault
    :param recounted: the attempts of the last window of pools in which not all of them count
    """
    for pool, course in sorted(courses.items()):
        lately = (recounted or {}).get(pool, course.lately)
        why = tripped(lately, before.get(pool, Attempts()), rules)
        if why:
            return Verdict("roll_back", f"pool {pool}: {why}")
    since = Attempts(
        sum(course.since.acquired for course in courses.values()),
        sum(course.since.timed_out for course in courses.values()),
        sum(course.since.failed for course in courses.values()),
    )
    if age_s < rules.stable_after:
        return Verdict("wait", f"in force for {age_s:.0f} s of {rules.stable_after:.0f} s")
    if since.total < rules.stable_samples:
        return Verdict("wait", f"{since.total} attempts of {rules.stable_samples} at least")
    if since.timeout_rate > rules.rollback_timeout_rate:
        return Verdict("wait", f"{since.timeout_rate:.1%} of {since.total} attempts timed out")
    return Verdict("stable", f"{since.timeout_rate:.1%} of {since.total} attempts timed out in {age_s:.0f} s")


def tripped(lately: Attempts, before: Attempts, rules: ConfigBlock) -> str:
    """Return why the timeout rate asks for a rollback, empty if it does not."""
    if lately.total < rules.rollback_samples or lately.timeout_rate <= rules.rollback_timeout_rate:
        return ""
    if before.total >= rules.rollback_samples and lately.timeout_rate <= before.timeout_rate:
        return ""
    was = f", {before.timeout_rate:.1%} of {before.total} before" if before.total else ""
    limit = f"{rules.rollback_timeout_rate:.0%}"
    return f"{lately.timeout_rate:.1%} of {lately.total} attempts timed out (limit {limit}{was})"
