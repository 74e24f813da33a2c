"""How the configuration itself changes: when a revision counts as good, and how a new one is rolled out."""

from __future__ import annotations

import msgspec

from gpulockd.settings.kinds import Count, Line, Seconds, SecondsOrZero, Share


class ConfigBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a live change is let in, when it counts as stable, and when it is taken back (times in seconds).

    Too many timeouts over the last `rollback_after`, with at least `rollback_samples` requests, take it back.
    """

    require_validation: bool = False
    stable_after: SecondsOrZero = 3600.0
    stable_samples: Count = 20
    auto_rollback: bool = True
    rollback_timeout_rate: Share = 0.1
    rollback_after: Seconds = 60.0
    rollback_samples: Count = 20
    restart: Line | None = None


class RolloutBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stages of a rollout, each a share of the fleet and how long it holds (in seconds), and its gates."""

    stages: tuple[tuple[Share, SecondsOrZero], ...] = ((0.1, 86_400.0), (0.5, 172_800.0))
    success_rate: Share = 0.95
    failure_rate: Share = 0.1
    timeout_rate: Share = 0.05
    redis_cpu: Share = 0.8
    least_samples: Count = 20
    require_approval: bool = True
