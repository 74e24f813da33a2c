"""The time limits of a lease: which rules there are, and what they say of one job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from gpulockd.model import Job
from gpulockd.settings import MonitorBlock, Settings, TaskBlock

Level = Literal["warning", "soft", "hard"]

RANK: dict[str, int] = {"": 0, "warning": 1, "soft": 2, "hard": 3}
"""How far a level is; "" is none."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The settings that judge leases; `tasks` by their names."""

    monitor: MonitorBlock = MonitorBlock()
    tasks: Mapping[str, TaskBlock] = {}

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The rules that these settings say."""
        return cls(monitor=settings.gpu_lock_monitor, tasks=settings.tasks)

    @property
    def recovers(self) -> bool:
        """Whether holders may be asked to stop and lose their leases."""
        return self.monitor.enabled and self.monitor.auto_recovery


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The ages at which the levels of one lease act (in ms)."""

    warning_ms: int
    soft_ms: int
    hard_ms: int


Triple = tuple[float, float, float]


def in_seconds(limits: Limits) -> Triple:
    """Warning, soft and hard limit in seconds."""
    return limits.warning_ms / 1000, limits.soft_ms / 1000, limits.hard_ms / 1000


def limits_of(job: Job, rules: Rules) -> Limits:
    """The limits of a lease: its job's own, over those of its task, over those of all."""
    levels = rules.monitor.timeout_levels
    task = rules.tasks.get(job.task) or TaskBlock()
    of_all = (levels.warning, levels.soft_timeout, levels.hard_timeout)
    of_task = _over(of_all, (task.warning, task.soft_timeout, task.hard_timeout))
    warning_s, soft_s, hard_s = _over(of_task, (job.warning_s, job.soft_timeout_s, job.hard_timeout_s))
    soft_s = min(soft_s, hard_s)
    return Limits(
        warning_ms=round(min(warning_s, soft_s) * 1000), soft_ms=round(soft_s * 1000), hard_ms=round(hard_s * 1000)
    )


def _over(usual: Triple, given: tuple[float | None, float | None, float | None]) -> Triple:
    """The usual limits (in seconds) with the given ones in their place.

    Who asks for more time than usual would be stopped by a level that nobody has thought of, so those that are left out
    grow in the same proportion.
    """
    asked = zip(given[1:], usual[1:], strict=True)
    stretch = max((mine / other for mine, other in asked if mine is not None), default=1.0)
    stretch = max(1.0, stretch)
    warning_s, soft_s, hard_s = (
        other * stretch if mine is None else mine for mine, other in zip(given, usual, strict=True)
    )
    return warning_s, soft_s, hard_s


def reached(held_ms: int, limits: Limits) -> Level | None:
    """The highest level that a hold of that age has reached."""
    if held_ms >= limits.hard_ms:
        return "hard"
    if held_ms >= limits.soft_ms:
        return "soft"
    return "warning" if held_ms >= limits.warning_ms else None
