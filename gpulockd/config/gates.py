"""The gates of a staged rollout: what was counted where the candidate is in force, and whether it may stay there.

Its law: no gate is judged by too few attempts, but for what needs no counting: a critical alert, a store out of breath.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from gpulockd.ledger.tally import Outcome

Gate = Literal["alerts", "redis_cpu", "timeouts", "failures", "success", "recent", "few_samples"]

MOST_RECENT = 200
"""How many of the last attempts are looked at alone, so that good days do not hide a bad hour."""

CPU_LOOKS = 3
"""At so many looks in a row the store's CPU must be over its limit before the gate closes."""

MOST_ALERTS = 8

_LETTERS = {"acquired": "s", "timed_out": "t", "failed": "f"}


class Limits(Protocol):
    """What the gates go by (`rollout:` of the settings); rates and CPU as shares of 1."""

    @property
    def success_rate(self) -> float:
        """The least share of attempts that must get the lock."""

    @property
    def failure_rate(self) -> float:
        """The share of attempts that fail or time out must stay below this."""

    @property
    def timeout_rate(self) -> float:
        """The share of attempts that time out must stay below this."""

    @property
    def redis_cpu(self) -> float:
        """The share of one core that the store uses must stay below this."""

    @property
    def least_samples(self) -> int:
        """So many attempts are needed to judge by rates."""


class Counted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happened under the candidate since its stage began.

    `recent` has the last outcomes by letter, the latest last; `alerts` the critical ones; `cpu` the store's last looks
    (shares of one core); `missed` counts events that the streams had dropped before anybody counted them.
    """

    acquired: int = 0
    timed_out: int = 0
    failed: int = 0
    recent: str = ""
    alerts: tuple[str, ...] = ()
    cpu: tuple[float, ...] = ()
    missed: int = 0

    @property
    def attempts(self) -> int:
        """How many attempts the lock has decided."""
        return self.acquired + self.timed_out + self.failed

    @property
    def failures(self) -> int:
        """How many of them did not get the lock."""
        return self.timed_out + self.failed

    def rate(self, count: int) -> float:
        """The share of the attempts; 0 before any."""
        return count / self.attempts if self.attempts else 0.0

    def __str__(self) -> str:
        if not self.attempts:
            return "no attempts"
        return (
            f"{self.attempts} attempts, {self.rate(self.acquired):.1%} got the lock, "
            f"{self.rate(self.timed_out):.1%} timed out, {self.rate(self.failed):.1%} failed otherwise"
        )


def more(
    counted: Counted,
    outcomes: Iterable[Outcome] = (),
    *,
    alerts: Iterable[str] = (),
    cpu: float | None = None,
    missed: int = 0,
) -> Counted:
    """Return what is counted with these besides; an attempt that its own program withdrew counts as none."""
    ended = [outcome for outcome in outcomes if outcome in _LETTERS]
    letters = "".join(_LETTERS[outcome] for outcome in ended)
    return Counted(
        acquired=counted.acquired + ended.count("acquired"),
        timed_out=counted.timed_out + ended.count("timed_out"),
        failed=counted.failed + ended.count("failed"),
        recent=(counted.recent + letters)[-MOST_RECENT:],
        alerts=tuple(dict.fromkeys((*counted.alerts, *alerts)))[:MOST_ALERTS],
        cpu=counted.cpu if cpu is None else (*counted.cpu, cpu)[-CPU_LOOKS:],
        missed=counted.missed + missed,
    )


class Trip(msgspec.Struct, frozen=True, kw_only=True):
    """A gate that has closed, and why in words."""

    gate: Gate
    text: str

    def __str__(self) -> str:
        return self.text


def enough(counted: Counted, limits: Limits) -> bool:
    """Whether there are attempts enough to judge by rates."""
    return counted.attempts >= limits.least_samples


def tripped(counted: Counted, limits: Limits, *, last_word: bool = False) -> Trip | None:
    """Return the gate that has closed, None if all stand open.

    :param last_word: no more attempts are waited for: with too few of them, one that failed is one too many
    """
    return _without_counting(counted, limits) or _by_rates(counted, limits, last_word=last_word)


def _without_counting(counted: Counted, limits: Limits) -> Trip | None:
    if counted.alerts:
        return Trip(gate="alerts", text=f"critical alert {', '.join(counted.alerts)}")
    if len(counted.cpu) == CPU_LOOKS and min(counted.cpu) >= limits.redis_cpu:
        seen, limit = min(counted.cpu), limits.redis_cpu
        return Trip(gate="redis_cpu", text=f"the store uses {seen:.0%} of a core, which must stay below {limit:.0%}")
    return None


def _by_rates(counted: Counted, limits: Limits, *, last_word: bool) -> Trip | None:
    of, failures = f"of {counted.attempts} attempts", counted.failures
    if not enough(counted, limits):
        if last_word and failures:
            return Trip(
                gate="few_samples",
                text=f"{failures} {of} failed, and fewer than {limits.least_samples} attempts cannot excuse that",
            )
        return None
    if counted.attempts and counted.rate(counted.timed_out) >= limits.timeout_rate:
        seen = counted.rate(counted.timed_out)
        return Trip(gate="timeouts", text=f"{seen:.1%} {of} timed out, which must stay below {limits.timeout_rate:.0%}")
    if counted.attempts and counted.rate(failures) >= limits.failure_rate:
        seen = counted.rate(failures)
        return Trip(gate="failures", text=f"{seen:.1%} {of} failed, which must stay below {limits.failure_rate:.0%}")
    if counted.attempts and counted.rate(counted.acquired) < limits.success_rate:
        seen = counted.rate(counted.acquired)
        return Trip(gate="success", text=f"{seen:.1%} {of} got the lock; at least {limits.success_rate:.0%} must")
    return _by_the_latest(counted.recent, limits)


def _by_the_latest(recent: str, limits: Limits) -> Trip | None:
    """The last attempts alone; only the failure gate, since a stricter one would close by chance in a long stage."""
    failures = len(recent) - recent.count("s")
    if len(recent) < MOST_RECENT or failures < limits.failure_rate * MOST_RECENT:
        return None
    return Trip(
        gate="recent",
        text=f"{failures} of the last {MOST_RECENT} attempts failed, which must stay below {limits.failure_rate:.0%}",
    )
