"""gpulockd: one GPU, one program at a time, in a fair line.

`async with gpu_lock() as lease:` waits until a GPU is this task's own. Nothing connects, starts a thread or a loop
before that; `import gpulockd` loads what a name needs when the name is first used.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # `typing` itself takes a tenth of the time of a short command
if TYPE_CHECKING:
    from typing import Any

    from gpulockd.client.lease import BlockingLease, Lease
    from gpulockd.client.lock import current_lease, gpu_lock
    from gpulockd.client.watching import lock_events
    from gpulockd.errors import (
        ConfigError,
        GpuLockError,
        GpuLockTimeout,
        ImpossibleRequest,
        LeaseLost,
        StoreUnavailable,
        WouldDeadlock,
    )
    from gpulockd.model import Gpu

__version__ = "0.1.0"

__all__ = [
    "BlockingLease",
    "ConfigError",
    "Gpu",
    "GpuLockError",
    "GpuLockTimeout",
    "ImpossibleRequest",
    "Lease",
    "LeaseLost",
    "StoreUnavailable",
    "WouldDeadlock",
    "__version__",
    "current_lease",
    "gpu_lock",
    "lock_events",
]

_HOMES = {
    "BlockingLease": "gpulockd.client.lease",
    "Gpu": "gpulockd.model",
    "Lease": "gpulockd.client.lease",
    "current_lease": "gpulockd.client.lock",
    "gpu_lock": "gpulockd.client.lock",
    "lock_events": "gpulockd.client.watching",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gpulockd' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "gpulockd.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
