"""Settings of one task, and bundles of settings that can be applied by name. None is what is said of all."""

from __future__ import annotations

import msgspec

from gpulockd.settings.blocks import GpuLockBlock
from gpulockd.settings.kinds import Seconds, SecondsOrZero, UpToADay


class TaskBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is different for one task (all in seconds): how it waits, and the levels of its holds."""

    max_wait_time: SecondsOrZero | None = None
    lock_timeout: Seconds | None = None
    poll_interval: UpToADay | None = None
    warning: Seconds | None = None
    soft_timeout: Seconds | None = None
    hard_timeout: Seconds | None = None


WAITING = ("max_wait_time", "lock_timeout", "poll_interval")
"""What a task may say of how it waits; the other keys are its limits."""


def over(usual: GpuLockBlock, task: TaskBlock | None) -> GpuLockBlock:
    """How one task waits: what is said of it over what is said of all."""
    said = {name: getattr(task, name) for name in WAITING if getattr(task, name, None) is not None}
    return msgspec.structs.replace(usual, **said)


class ProfileBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A named part of the block `gpu_lock` (in seconds)."""

    poll_interval: UpToADay | None = None
    max_wait_time: SecondsOrZero | None = None
    lock_timeout: Seconds | None = None
    exponential_backoff: bool | None = None
    max_poll_interval: UpToADay | None = None


PROFILES: dict[str, ProfileBlock] = {
    "optimized": ProfileBlock(poll_interval=0.5, max_wait_time=300.0, lock_timeout=600.0, max_poll_interval=5.0),
    "high_load": ProfileBlock(poll_interval=0.2, max_wait_time=600.0, lock_timeout=1200.0),
    "low_load": ProfileBlock(poll_interval=1.0, max_wait_time=120.0, lock_timeout=300.0),
}
"""The profiles that there are without any in config.yml; one of the same name changes them key by key."""
