"""The rows of the route table that tell how the pool is, and how it was."""

from __future__ import annotations

from gpulockd.web import beats, measuring, monitoring, overseen, past, past_views, system
from gpulockd.web import monitoring_views as views
from gpulockd.web.table import DURATION, Query, Row

BASE = "/api/v1/monitoring"

_KEY = (Query("lock_key", "which lock; default: gpu_lock:0", "string"),)
_PAST = (
    Query("since", "how far back: seconds, or '10m' (default: an hour)", "string", pattern=DURATION),
    Query("task", "only of this task, or task id", "string"),
    Query("gpu", "only on this gpu: its index or key", "string"),
    Query("length", f"how many of each ({past.USUAL_ROWS} if not said)", most=past.MOST_ROWS),
)
_WINDOW = (
    Query("since", "how far back: seconds, or '10m' (default: a day)", "string", pattern=DURATION),
    Query("by", "minute or hour (default: hour)", "string", pattern="^(minute|hour)$"),
    Query("task", "of this task alone, by whole days and without spans", "string"),
)

ROWS: tuple[Row, ...] = (
    Row(
        method="GET",
        path=f"{BASE}/gpu-lock/health",
        handler=monitoring.lock_health,
        answer=views.LockHealth,
        query=_KEY,
        problems=(404,),
        summary="How the lock is",
    ),
    Row(
        method="GET",
        path=f"{BASE}/gpu-lock/status",
        handler=monitoring.lock_status,
        answer=views.LockStatus,
        query=_KEY,
        problems=(404,),
        summary="Who has the lock, and how it was lately",
    ),
    *(
        Row(
            method="POST",
            path=f"{BASE}/{path}",
            handler=handler,
            request=views.LockToRelease,
            answer=views.LockTaken,
            access="writer",
            summary="Take a lock away from whoever has it now",
        )
        for path, handler in (("release-lock", monitoring.release_lock), ("lock/release", monitoring.release_lock_too))
    ),
    Row(
        method="GET",
        path=f"{BASE}/heartbeat/all",
        handler=beats.all_heartbeats,
        answer=views.Heartbeats,
        summary="The tasks that hold a GPU, and what each last said",
    ),
    Row(
        method="GET",
        path=f"{BASE}/heartbeat/task/{{id:path}}",
        handler=beats.task_heartbeat,
        answer=views.HeartbeatOfTask,
        summary="What one task last said",
    ),
    Row(
        method="GET",
        path=f"{BASE}/statistics",
        handler=system.system_statistics,
        answer=views.SystemStatistics,
        summary="Lock, monitor, heartbeats, limits and tasks in one answer",
    ),
    Row(
        method="GET",
        path=f"{BASE}/monitor/status",
        handler=overseen.monitor_status,
        answer=views.Monitor,
        summary="Whether the monitor works, and what it has found",
    ),
    Row(
        method="GET",
        path=f"{BASE}/timeout/status",
        handler=overseen.timeout_status,
        answer=views.Timeouts,
        summary="What was done about leases that were held for long",
    ),
    Row(
        method="GET",
        path=f"{BASE}/timeout/config",
        handler=overseen.timeout_config,
        answer=views.TimeoutConfig,
        summary="The ages at which something is done",
    ),
    Row(
        method="GET",
        path="/api/v1/history",
        handler=past.history,
        answer=past_views.PastView,
        query=_PAST,
        summary="Holds and waits that were",
    ),
    Row(
        method="GET",
        path="/api/v1/statistics",
        handler=system.statistics,
        answer=past_views.StatisticsView,
        query=_WINDOW,
        summary="What was counted: by minute or hour, by task, how long it took",
    ),
    Row(
        method="GET",
        path="/metrics",
        handler=measuring.metrics,
        answer=str,
        media="text/plain",
        summary="Metrics in Prometheus's text format",
    ),
)
