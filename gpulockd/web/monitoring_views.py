"""What the documented routes answer: names as users of the source documents know them, times in (unix) seconds."""

from __future__ import annotations

from typing import Any

import msgspec


class LockHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the lock is. Rates are of the pool, all time; `recent_success_rate` of the last 20 attempts."""

    overall_status: str
    issues_count: int
    total_attempts: int
    success_rate: float
    timeout_rate: float
    average_execution_time: float
    recent_success_rate: float
    lock_holder: str | None
    lock_age: float | None
    timestamp: float


class LockStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the lock has done since `since` (unix seconds, null before anything). Times are in seconds."""

    total_attempts: int
    successful_acquisitions: int
    timeouts: int
    failures: int
    withdrawn: int
    success_rate: float
    timeout_rate: float
    recent_success_rate: float
    recent_timeout_rate: float
    average_wait_time: float
    average_execution_time: float
    total_execution_time: float
    execution_count: int
    since: float | None


class LockJudged(msgspec.Struct, frozen=True, kw_only=True):
    """How the lock is, and one line for each thing that is the matter."""

    status: str
    issues: tuple[str, ...]
    lock_age: float | None
    last_lock_holder: str | None
    statistics: LockStatistics
    timestamp: float


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt: from when to when it waited."""

    task_name: str
    lock_key: str
    success: bool
    start_time: float
    end_time: float
    duration: float


class LockStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a lock, and how it was lately. `ttl_seconds`: until it would end without a sign of life."""

    lock_key: str
    is_locked: bool
    lock_holder: str | None
    lock_holders: tuple[str, ...]
    lock_type: str
    lock_age: float | None
    ttl_seconds: float | None
    timestamp: float
    health: LockJudged
    statistics: LockStatistics
    recent_history: tuple[Attempt, ...]


class TaskBeat(msgspec.Struct, frozen=True, kw_only=True):
    """What a living task last said; progress in percent."""

    status: str
    progress: float
    message: str
    start_time: float
    last_heartbeat: float


class HeartbeatStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How many tasks there are, and how many heartbeats were missed since the statistics began."""

    total_tasks: int
    active_tasks: int
    dead_tasks: int
    heartbeat_failures: int


class Heartbeats(msgspec.Struct, frozen=True, kw_only=True):
    """The tasks that hold a GPU. Stalled ones are active too, but silent for too long; dead ones have no process any
    more; orphaned ones no lease."""

    active_tasks: dict[str, TaskBeat]
    dead_tasks: tuple[str, ...]
    orphaned_tasks: tuple[str, ...]
    stalled_tasks: tuple[str, ...]
    statistics: HeartbeatStatistics
    timestamp: float


class HeartbeatData(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one task."""

    task_id: str
    status: str
    progress: float
    message: str
    start_time: float
    last_update: float


class HeartbeatOfTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task. `status`: running, failed (its process died), orphaned, or not_found."""

    task_id: str
    status: str
    heartbeat_exists: bool
    is_registered: bool
    is_running: bool
    progress: float | None
    message: str | None
    start_time: float | None
    last_update: float | None
    heartbeat_data: HeartbeatData | None


class MonitorState(msgspec.Struct, frozen=True, kw_only=True):
    """How the monitor is: running, stopped (switched off) or error (its last checks saw nothing)."""

    status: str
    healthy_checks: int
    unhealthy_checks: int
    last_error: str | None
    last_recovery_time: float | None


class MonitorStats(msgspec.Struct, frozen=True, kw_only=True):
    """What the monitor has done since `start_time`."""

    total_checks: int
    warning_count: int
    soft_timeout_count: int
    hard_timeout_count: int
    successful_recoveries: int
    failed_recoveries: int
    start_time: float
    last_check_time: float | None


class Monitor(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor and its configuration; `uptime` in seconds."""

    monitor_status: MonitorState
    monitor_stats: MonitorStats
    config: dict[str, Any]
    is_running: bool
    uptime: float


class TimeoutStats(msgspec.Struct, frozen=True, kw_only=True):
    """How often a limit was acted on since `start_time`; `failed_actions`: recoveries that were given up."""

    warning_actions: int
    soft_timeout_actions: int
    hard_timeout_actions: int
    successful_actions: int
    failed_actions: int
    start_time: float


class TimeoutActionDone(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that was acted on."""

    action_name: str
    level: str
    lock_key: str
    task_name: str
    success: bool
    timestamp: float


class TimeoutAction(msgspec.Struct, frozen=True, kw_only=True):
    """What is done at an age (in seconds), and when it was last done."""

    name: str
    level: str
    threshold: float
    last_executed: float | None


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """What was done about old leases; `action_history` has the last ten of a day."""

    timeout_stats: TimeoutStats
    action_history: tuple[TimeoutActionDone, ...]
    configured_actions: tuple[TimeoutAction, ...]
    timestamp: float


class TimeoutConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The ages that count (in seconds)."""

    warning: float
    soft_timeout: float
    hard_timeout: float


class Suspected(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that may be dead: of what kind, since when (in seconds), why, and how many wait for its gpus."""

    kind: str
    lease: str
    task: str
    gpus: tuple[str, ...]
    for_s: float
    waiting: int
    why: str


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How long something took (in seconds); null where nothing was counted."""

    count: int
    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    longest_s: float | None


class TaskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One task in the last day: how its attempts ended, how long it waited and held, and when it was last seen."""

    attempts: int
    success_rate: float
    timeouts: int
    failures: int
    lost: int
    waits: Spread
    holds: Spread
    last_seen: float


class SystemStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """All of it at one moment."""

    timestamp: float
    gpu_lock: LockHealth
    monitor: Monitor
    heartbeat: Heartbeats
    timeout: Timeouts
    health_score: float
    deadlock_detected: bool
    suspicions: tuple[Suspected, ...]
    waits: Spread
    holds: Spread
    tasks: dict[str, TaskFacts]


class LockToRelease(msgspec.Struct, frozen=True, kw_only=True):
    """Which lock to take away from whoever has it. `task_name`: only if that task has it."""

    lock_key: str
    task_name: str = "manual"


class LockTaken(msgspec.Struct, frozen=True, kw_only=True):
    """Whether it was taken away, and from which task."""

    success: bool
    message: str
    lock_key: str
    task_name: str
