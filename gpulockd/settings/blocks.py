"""The blocks of config.yml that say how locks are waited for, held, watched and offered. Durations are in seconds.

The blocks and names of `gpu_lock` and `gpu_lock_monitor` are those that users of YiVideo know.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gpulockd.settings.kinds import (
    Line,
    Seconds,
    SecondsOrZero,
    Tries,
    UpToADay,
    UpToADayOrZero,
    Whole,
)


class GpuLockBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a program waits for a lock (all in seconds)."""

    poll_interval: UpToADay = 2.0
    max_wait_time: SecondsOrZero = 1800.0
    lock_timeout: Seconds = 3600.0
    exponential_backoff: bool = True
    max_poll_interval: UpToADay = 10.0


class TimeoutLevels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Age of a hold at which each level acts (in seconds)."""

    warning: Seconds = 1800.0
    soft_timeout: Seconds = 3600.0
    hard_timeout: Seconds = 7200.0


class HeartbeatBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The task's heartbeat (in seconds)."""

    interval: UpToADay = 60.0
    timeout: Seconds = 300.0


class CleanupBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a failed recovery is tried again; `retry_delay` in seconds."""

    max_retry: Tries = 3
    retry_delay: UpToADayOrZero = 60.0


class MonitorBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon watches and when it acts; `monitor_interval` in seconds."""

    monitor_interval: UpToADay = 30.0
    timeout_levels: TimeoutLevels = TimeoutLevels()
    heartbeat: HeartbeatBlock = HeartbeatBlock()
    cleanup: CleanupBlock = CleanupBlock()
    enabled: bool = True
    auto_recovery: bool = True


class SessionBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a process counts as gone (all in seconds).

    A pool that had a guard, and whose store lost its data, waits `guard_gone_after` for it.

    A session ends `ttl` after its last keepalive on the ledger's clock, which one script advances by at most
    `step_s`. A client without a guard believes its lease for `belief_s` after the request it last had answered.
    """

    ttl: UpToADay = 20.0
    keepalive: UpToADay = 5.0
    rpc_deadline: UpToADay = 2.0
    margin: UpToADayOrZero = 1.0
    claim_window: UpToADayOrZero = 3.0
    guard_gone_after: UpToADay = 60.0

    @property
    def step_s(self) -> float:
        """The most that one script may advance the ledger clock (in seconds)."""
        return self.keepalive + self.rpc_deadline

    @property
    def belief_s(self) -> float:
        """How long after asking a client may believe an answer (in seconds): 12 with the defaults."""
        return self.ttl - self.step_s - self.margin


class QueueBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What waiting is worth (in seconds): a point of priority, and how long others may pass what cannot fit."""

    priority_step: SecondsOrZero = 60.0
    hold_back_after: SecondsOrZero = 60.0


class SettleBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to a gpu between two holders (timeout, grace in seconds)."""

    policy: Literal["after_loss", "always", "never"] = "after_loss"
    timeout: Seconds = 30.0
    grace: UpToADayOrZero = 10.0


class GpusBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which cards the daemon offers. `simulate`: None = only when NVML has none, 0 = never, N = N simulated cards.

    `guard`: programs of this host begin only when the daemon lets them in. `require_guard`: they wait while none does.
    """

    simulate: Annotated[int, Whole(0, 64)] | None = None
    guard: bool = True
    require_guard: bool = False
    foreign: Literal["ignore", "report", "wait"] = "report"


class RedisBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The store: a URL, or None for the private Valkey that the daemon starts."""

    url: Line | None = None
    server_binary: Line | None = None


class TlsBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files in PEM form with which the TCP port speaks HTTPS: the certificate with its chain, and its key."""

    certificate: Line | None = None
    key: Line | None = None


class WebBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the HTTP API listens and whom it lets write."""

    listen: Line = "127.0.0.1:8788"
    allowed_hosts: tuple[Line, ...] = ()
    writes: Literal["token", "loopback"] = "token"
    tls: TlsBlock = TlsBlock()
