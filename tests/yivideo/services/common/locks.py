"""The one import that changes: what the services import from here was YiVideo's own code before."""

from gpulockd.compat.yivideo import (
    SmartGpuLockManager,
    get_gpu_lock_config,
    get_gpu_lock_health_summary,
    get_gpu_lock_status,
    gpu_lock,
    lock_manager,
    release_gpu_lock,
)

__all__ = [
    "SmartGpuLockManager",
    "get_gpu_lock_config",
    "get_gpu_lock_health_summary",
    "get_gpu_lock_status",
    "gpu_lock",
    "lock_manager",
    "release_gpu_lock",
]
