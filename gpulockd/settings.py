"""Every setting, its default and its range. Durations are in seconds; a value may say "5m" (no unit in the key).

The blocks and names of `gpu_lock` and `gpu_lock_monitor` are those that users of YiVideo know.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gpulockd.errors import ConfigError
from gpulockd.units import parse_duration_s

SHORTEST_S = 0.05
"""The shortest interval that any setting may have (in seconds)."""


class GpuLockBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a program waits for a lock (all in seconds)."""

    poll_interval: float = 2.0
    max_wait_time: float = 1800.0
    lock_timeout: float = 3600.0
    exponential_backoff: bool = True
    max_poll_interval: float = 10.0


class TimeoutLevels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Age of a hold at which each level acts (in seconds)."""

    warning: float = 1800.0
    soft_timeout: float = 3600.0
    hard_timeout: float = 7200.0


class HeartbeatBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The task's heartbeat (in seconds)."""

    interval: float = 60.0
    timeout: float = 300.0


class CleanupBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a failed recovery is tried again; `retry_delay` in seconds."""

    max_retry: int = 3
    retry_delay: float = 60.0


class MonitorBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the daemon watches and when it acts; `monitor_interval` in seconds."""

    monitor_interval: float = 30.0
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

    ttl: float = 20.0
    keepalive: float = 5.0
    rpc_deadline: float = 2.0
    margin: float = 1.0
    claim_window: float = 3.0
    guard_gone_after: float = 60.0

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

    priority_step: float = 60.0
    hold_back_after: float = 60.0


class SettleBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to a gpu between two holders (timeout, grace in seconds)."""

    policy: Literal["after_loss", "always", "never"] = "after_loss"
    timeout: float = 30.0
    grace: float = 10.0


class GpusBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which cards the daemon offers. `simulate`: None = only when NVML has none, 0 = never, N = N simulated cards.

    `guard`: programs of this host begin only when the daemon lets them in. `require_guard`: they wait while none does.
    """

    simulate: int | None = None
    guard: bool = True
    require_guard: bool = False
    foreign: Literal["ignore", "report", "wait"] = "report"


class RedisBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The store: a URL, or None for the private Valkey that the daemon starts."""

    url: str | None = None
    server_binary: str | None = None


class WebBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the HTTP API listens and whom it lets write."""

    listen: str = "127.0.0.1:8788"
    allowed_hosts: tuple[str, ...] = ()
    writes: Literal["token", "loopback"] = "token"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All blocks of config.yml."""

    pool: str | None = None
    gpu_lock: GpuLockBlock = GpuLockBlock()
    gpu_lock_monitor: MonitorBlock = MonitorBlock()
    redis: RedisBlock = RedisBlock()
    session: SessionBlock = SessionBlock()
    queue: QueueBlock = QueueBlock()
    settle: SettleBlock = SettleBlock()
    gpus: GpusBlock = GpusBlock()
    web: WebBlock = WebBlock()


_ZERO_ALLOWED = {"max_wait_time", "hold_back_after", "priority_step", "claim_window", "margin", "retry_delay", "grace"}


def _with_durations(data: Any, block: Any, path: str) -> Any:
    """Return `data` with every text where `block` has a float turned into seconds."""
    if not isinstance(data, dict):
        return data
    fields = {field.name: field for field in msgspec.structs.fields(block)}
    turned = {}
    for name, value in data.items():
        here = f"{path}.{name}" if path else str(name)
        field = fields.get(name)
        if field is not None and field.type is float:
            value = parse_duration_s(value, here)
            if value < SHORTEST_S and not (value == 0 and name in _ZERO_ALLOWED):
                raise ConfigError(f"{here}: {value:g} s is too short; the shortest is {SHORTEST_S:g} s")
        elif field is not None and isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            value = _with_durations(value, field.type, here)
        turned[name] = value
    return turned


def settings_from(data: dict[str, Any]) -> Settings:
    """Return the settings that a parsed config.yml says; what it leaves out has its default.

    :raises ConfigError: for an unknown key, a wrong type, or values that do not fit together
    """
    try:
        settings = msgspec.convert(_with_durations(data, Settings, ""), Settings)
    except msgspec.ValidationError as wrong:
        raise ConfigError(f"config: {wrong}") from None
    check_session(settings.session)
    if settings.gpus.require_guard and not settings.gpus.guard:
        raise ConfigError("gpus.require_guard needs gpus.guard: with guard false nobody could ever begin")
    levels = settings.gpu_lock_monitor.timeout_levels
    if not levels.warning <= levels.soft_timeout <= levels.hard_timeout:
        raise ConfigError("gpu_lock_monitor.timeout_levels: it must hold that warning <= soft_timeout <= hard_timeout")
    return settings


def check_session(session: SessionBlock) -> None:
    """Refuse session times under which a living process could lose its lease to one clock step.

    :raises ConfigError: unless step + 2 * rpc_deadline + keepalive + margin <= ttl
    """
    least_s = session.step_s + 2 * session.rpc_deadline + session.keepalive + session.margin
    if least_s > session.ttl:
        raise ConfigError(
            f"session.ttl: {session.ttl:g} s is too short for keepalive {session.keepalive:g} s, rpc_deadline "
            f"{session.rpc_deadline:g} s and margin {session.margin:g} s; set ttl to at least {least_s:g} s"
        )
