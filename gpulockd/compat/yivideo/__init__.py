"""The names of YiVideo's `services.common.locks`, and the manager of heartbeats, for its workers to import instead.

    from gpulockd.compat.yivideo import gpu_lock  # was: from services.common.locks import gpu_lock

Its law: a field says what its name says, of the whole pool and at this moment; what nobody knows is None. What YiVideo
did and why some of it is different here is told in docs/migrate-yivideo.md.
"""

from gpulockd.compat.yivideo.beats import (
    TaskHeartbeatManager,
    get_heartbeat_manager,
    start_task_heartbeat,
    stop_task_heartbeat,
    update_task_heartbeat,
)
from gpulockd.compat.yivideo.configuration import get_gpu_lock_config
from gpulockd.compat.yivideo.lock import gpu_lock
from gpulockd.compat.yivideo.manager import SmartGpuLockManager, lock_manager
from gpulockd.compat.yivideo.status import get_gpu_lock_health_summary, get_gpu_lock_status
from gpulockd.compat.yivideo.taking import release_gpu_lock

__all__ = [
    "SmartGpuLockManager",
    "TaskHeartbeatManager",
    "get_gpu_lock_config",
    "get_gpu_lock_health_summary",
    "get_gpu_lock_status",
    "get_heartbeat_manager",
    "gpu_lock",
    "lock_manager",
    "release_gpu_lock",
    "start_task_heartbeat",
    "stop_task_heartbeat",
    "update_task_heartbeat",
]
