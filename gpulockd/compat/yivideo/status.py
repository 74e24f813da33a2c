"""How a lock is, for pages and health checks: an answer always, and never an exception for a store that is away."""

from __future__ import annotations

from typing import Any

from gpulockd.client.process import belongings
from gpulockd.compat.yivideo import figures, pool
from gpulockd.errors import GpuLockError
from gpulockd.model import DEFAULT_KEY
from gpulockd.units import check_key


def get_gpu_lock_status(lock_key: str = DEFAULT_KEY) -> dict[str, Any]:
    """Who has a lock, how it is, and how it was lately; {"error": ...} if the store cannot be asked.

    :raises ImpossibleRequest: for what is no key
    """
    key = check_key(lock_key)
    try:
        return figures.status_of(pool.ask(pool.seen), key, hearing())
    except GpuLockError as away:
        return {"error": str(away)}


def get_gpu_lock_health_summary(lock_key: str = DEFAULT_KEY) -> dict[str, Any]:
    """How a lock is in the ten documented fields; {"error": ...} if the store cannot be asked.

    :raises ImpossibleRequest: for what is no key
    """
    key = check_key(lock_key)
    try:
        return figures.summary_of(pool.ask(pool.seen), key, hearing())
    except GpuLockError as away:
        return {"error": str(away)}


def hearing() -> figures.Hearing:
    """How this process hears that a lock is free."""
    stand = [line.listening for line in list(belongings().lines.values()) if not line.loop.is_closed()]
    return figures.Hearing(subscriptions=sum(stand), all_stand=all(stand))
