"""All settings."""

from __future__ import annotations

import msgspec

from gpulockd.settings.alerting import AlertsBlock, NotifyBlock
from gpulockd.settings.blocks import (
    GpuLockBlock,
    GpusBlock,
    MonitorBlock,
    QueueBlock,
    RedisBlock,
    SessionBlock,
    SettleBlock,
    WebBlock,
)
from gpulockd.settings.changing import ConfigBlock, RolloutBlock
from gpulockd.settings.kinds import Line
from gpulockd.settings.overrides import PROFILES, ProfileBlock, TaskBlock, over


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All blocks of config.yml. The keys of `tasks` and `profiles` are names that users give."""

    pool: Line | None = None
    gpu_lock: GpuLockBlock = GpuLockBlock()
    gpu_lock_monitor: MonitorBlock = MonitorBlock()
    tasks: dict[str, TaskBlock] = msgspec.field(default_factory=dict)
    profiles: dict[str, ProfileBlock] = msgspec.field(default_factory=PROFILES.copy)
    config: ConfigBlock = ConfigBlock()
    rollout: RolloutBlock = RolloutBlock()
    alerts: AlertsBlock = AlertsBlock()
    notify: NotifyBlock = NotifyBlock()
    redis: RedisBlock = RedisBlock()
    session: SessionBlock = SessionBlock()
    queue: QueueBlock = QueueBlock()
    settle: SettleBlock = SettleBlock()
    gpus: GpusBlock = GpusBlock()
    web: WebBlock = WebBlock()

    def gpu_lock_of(self, task: str) -> GpuLockBlock:
        """How a task waits: what is said of it over what is said of all."""
        return over(self.gpu_lock, self.tasks.get(task))
