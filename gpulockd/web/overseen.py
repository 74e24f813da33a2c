"""The documented routes about the monitor and the time limits: what was checked, found and done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from gpulockd.clock import wall_ms
from gpulockd.events import Event, LockRevoked, StopRequested, TimeoutWarned
from gpulockd.web import monitoring_views as views
from gpulockd.web.backend import Backend
from gpulockd.web.beats import oversees
from gpulockd.web.table import Visit

MOST_ACTIONS = 10

NAMES = {"warning": "warning_action", "soft": "soft_timeout_action", "hard": "hard_timeout_action"}
"""The actions as the source documents call them."""


async def monitor_status(visit: Visit) -> views.Monitor:
    """The monitor: whether it works, what it has found, and what was done."""
    return monitor_of(visit.backend)


async def timeout_status(visit: Visit) -> views.Timeouts:
    """What was done about leases that were held for long."""
    return timeouts_of(visit.backend, await visit.backend.events())


async def timeout_config(visit: Visit) -> views.TimeoutConfig:
    """The ages that count, unless a lease or a task has its own."""
    levels = visit.backend.settings.gpu_lock_monitor.timeout_levels
    return views.TimeoutConfig(
        warning=levels.warning, soft_timeout=levels.soft_timeout, hard_timeout=levels.hard_timeout
    )


def monitor_of(backend: Backend) -> views.Monitor:
    """Return the monitor's state and counts."""
    seen = oversees(backend).oversight()
    heard = backend.metrics.heard
    recovered_s = [heard.expired_at_ms / 1000] if heard.expired_at_ms else []
    recovered_s += [seen.last_recovery_s] if seen.last_recovery_s else []
    return views.Monitor(
        monitor_status=views.MonitorState(
            status=("running" if seen.works else "error") if seen.is_running else "stopped",
            healthy_checks=seen.healthy,
            unhealthy_checks=seen.unhealthy,
            last_error=seen.last_error,
            last_recovery_time=max(recovered_s, default=None),
        ),
        monitor_stats=views.MonitorStats(
            total_checks=seen.checks,
            warning_count=seen.warnings,
            soft_timeout_count=seen.softs,
            hard_timeout_count=seen.hards,
            # The leases of the dead, and those that were taken from who would not leave.
            successful_recoveries=heard.expired + seen.recovered,
            failed_recoveries=seen.failed,
            start_time=seen.started_s,
            last_check_time=seen.last_check_s,
        ),
        config=msgspec.to_builtins(backend.settings.gpu_lock_monitor),
        is_running=seen.is_running,
        uptime=max(0.0, wall_ms() / 1000 - seen.started_s),
    )


def timeouts_of(backend: Backend, events: Sequence[Event]) -> views.Timeouts:
    """Return what was done about old leases; the counts are the monitor's, the history is the pool's."""
    seen = oversees(backend).oversight()
    done = list(_actions(events))
    last = {action.level: action.timestamp for action in done}
    levels = backend.settings.gpu_lock_monitor.timeout_levels
    ages = {"warning": levels.warning, "soft": levels.soft_timeout, "hard": levels.hard_timeout}
    return views.Timeouts(
        timeout_stats=views.TimeoutStats(
            warning_actions=seen.warnings,
            soft_timeout_actions=seen.softs,
            hard_timeout_actions=seen.hards,
            successful_actions=seen.warnings + seen.softs + seen.recovered,
            failed_actions=seen.failed,
            start_time=seen.started_s,
        ),
        action_history=tuple(done[-MOST_ACTIONS:]),
        configured_actions=tuple(
            views.TimeoutAction(name=NAMES[level], level=level, threshold=age, last_executed=last.get(level))
            for level, age in ages.items()
        ),
        timestamp=wall_ms() / 1000,
    )


def _actions(events: Sequence[Event]) -> Iterator[views.TimeoutActionDone]:
    for event in events:
        level = level_of(event)
        if level:
            yield views.TimeoutActionDone(
                action_name=NAMES[level],
                level=level,
                lock_key=", ".join(event.gpus),
                task_name=event.task_id or event.task or "",
                success=not isinstance(event, TimeoutWarned) or level == "warning",
                timestamp=event.at_ms / 1000,
            )


def level_of(event: Event) -> str:
    """Return the level of age that an event tells of, empty if it tells of none."""
    if isinstance(event, LockRevoked):
        return "hard" if event.reason == "hard_timeout" else ""
    told = isinstance(event, TimeoutWarned | StopRequested) and event.reason in NAMES
    return str(event.reason) if told else ""
