"""What can go wrong, one class per decision the caller can take.

Every class carries its data as attributes; the docstring is the default message and names the cure.
Foreign exceptions become these at two edges only: the store (Redis) and the hardware (NVML).
"""

from __future__ import annotations

TYPE_CHECKING = False  # see gpulockd/__init__.py
if TYPE_CHECKING:
    from typing import Any

    from gpulockd.model import Gpu


class GpuLockError(Exception):
    """gpulockd could not do what was asked."""

    def __init__(self, message: str | None = None, **data: Any) -> None:
        text = message or (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(text)
        self.message = text
        for name, value in data.items():
            setattr(self, name, value)


class GpuLockTimeout(GpuLockError, TimeoutError):
    """No GPU became free within the wait limit: ask later, wait longer (`max_wait_time`) or raise `priority`."""

    waited_s: float = 0.0
    max_wait_s: float | None = None
    place: int | None = None
    queued: int | None = None
    offered: tuple[Gpu, ...] = ()


class LeaseLost(GpuLockError):
    """The lease ended before its body did: stop using the GPU now and ask again."""

    lease: str = ""
    token: int = 0
    reason: str = ""


class ImpossibleRequest(GpuLockError, ValueError):
    """This pool can never grant that: ask for fewer GPUs, less memory or other keys (`gpulockd status` lists them)."""


class EndedOutside(GpuLockError):
    """The wait or the lease was ended by somebody else, or its id is another process's: ask again with a new one."""

    reason: str = ""


class WouldDeadlock(GpuLockError):
    """This task already holds a GPU and would wait for itself: ask for all GPUs in one call."""

    held: tuple[str, ...] = ()


class StoreUnavailable(GpuLockError, ConnectionError):
    """Redis cannot be reached: start `gpulockd serve`, or set GPULOCKD_REDIS_URL to a server that answers."""


class ConfigError(GpuLockError, ValueError):
    """The configuration cannot be used: correct the value that the message names."""

    path: str = ""
    involved: tuple[str, ...] = ()
    cure: str = ""


class Unvalidated(GpuLockError):
    """This change was not validated: run `gpulockd bench config` with it first, or say `--unvalidated`."""


class ConfigConflict(GpuLockError):
    """The configuration was changed meanwhile: look at `gpulockd config history` and make the change again."""

    current: int | None = None
