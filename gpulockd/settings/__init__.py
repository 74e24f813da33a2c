"""Every setting, its default and its range. Durations are in seconds; a value may say "5m" (no unit in the key).

Its law: what has come through `checked` fits the blocks, and what has come through `settings_from` fits together.
"""

from gpulockd.settings.alerting import AlertRule, AlertsBlock, NotifyBlock
from gpulockd.settings.blocks import (
    CleanupBlock,
    GpuLockBlock,
    GpusBlock,
    HeartbeatBlock,
    MonitorBlock,
    QueueBlock,
    RedisBlock,
    SessionBlock,
    SettleBlock,
    TimeoutLevels,
    TlsBlock,
    WebBlock,
)
from gpulockd.settings.changing import ConfigBlock, RolloutBlock
from gpulockd.settings.checks import checked
from gpulockd.settings.fitting import check_session, fitted, out_of_order, settings_from
from gpulockd.settings.kinds import SHORTEST_S
from gpulockd.settings.overrides import PROFILES, ProfileBlock, TaskBlock
from gpulockd.settings.paths import NEEDS_RESTART, leaves, needs_restart
from gpulockd.settings.trees import Tree, flat, merged, nested, value_at, without
from gpulockd.settings.whole import Settings

__all__ = [
    "NEEDS_RESTART",
    "PROFILES",
    "SHORTEST_S",
    "AlertRule",
    "AlertsBlock",
    "CleanupBlock",
    "ConfigBlock",
    "GpuLockBlock",
    "GpusBlock",
    "HeartbeatBlock",
    "MonitorBlock",
    "NotifyBlock",
    "ProfileBlock",
    "QueueBlock",
    "RedisBlock",
    "RolloutBlock",
    "SessionBlock",
    "Settings",
    "SettleBlock",
    "TaskBlock",
    "TimeoutLevels",
    "TlsBlock",
    "Tree",
    "WebBlock",
    "check_session",
    "checked",
    "fitted",
    "flat",
    "leaves",
    "merged",
    "needs_restart",
    "nested",
    "out_of_order",
    "settings_from",
    "value_at",
    "without",
]
