"""`lock_manager`: taking and releasing a lock by hand, and what the pool says of all of them."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping
from typing import Any

from gpulockd.clock import wall_ms
from gpulockd.compat.yivideo import figures, holds, pool
from gpulockd.compat.yivideo.lock import gpu_lock
from gpulockd.compat.yivideo.status import get_gpu_lock_status, hearing
from gpulockd.errors import ConfigError, GpuLockTimeout, LeaseLost, StoreUnavailable, WouldDeadlock
from gpulockd.model import DEFAULT_KEY
from gpulockd.units import check_key

log = logging.getLogger("locks")

TIMES = {"max_wait_time": "max_wait_time", "poll_interval": "poll_interval", "lock_timeout": "timeout"}
"""What a configuration says of one request -> the argument of `gpu_lock`. The rest is the pool's."""


class SmartGpuLockManager:
    """Locks of this process by hand. All managers of a process are one: what one has taken any may release."""

    max_history_size = figures.MOST_HISTORY

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._exceptions = {
            "normal_release_failures": 0,
            "emergency_releases": 0,
            "release_script_errors": 0,
            "ownership_violations": 0,
        }

    def __repr__(self) -> str:
        return "<SmartGpuLockManager>"

    def acquire_lock_with_smart_polling(
        self, task_name: str, lock_key: str = DEFAULT_KEY, config: Mapping[str, Any] | None = None
    ) -> bool:
        """Wait for a lock and take it. The thread that has it already joins it, and releases it as often.

        :param config: `max_wait_time`, `poll_interval`, `lock_timeout` (in seconds); what is left out is the pool's
        :returns: False if the wait was too long, or Redis was away when it was over; the log says which
        :raises ConfigError: for a value that is no duration, or a `config` that is no mapping
        :raises ImpossibleRequest: for a key that cannot be locked
        """
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(f"config: {config!r} is no mapping; say for example {{'max_wait_time': 300}}")
        said = {name: config[key] for key, name in TIMES.items() if config and config.get(key) is not None}
        lock = gpu_lock(check_key(lock_key), task=task_name, **said)
        try:
            lock.__enter__()
        except GpuLockTimeout:
            return False
        except (StoreUnavailable, WouldDeadlock) as refused:
            log.error("任务 %s 无法获取GPU锁: %s", task_name, refused)
            return False
        try:
            holds.entered_by_hand(lock, functools.partial(lock.__exit__, None, None, None))
        except BaseException:  # a signal handler may raise anywhere
            lock.__exit__(None, None, None)
            raise
        return True

    def release_lock(self, task_name: str, lock_key: str = DEFAULT_KEY, release_reason: str = "normal") -> bool:
        """End the lease of this run on a lock, and no other's.

        :param task_name: the task's name or the id of its run (Celery: of its request), from the thread that took it;
            what was taken by hand is found by its id from any thread
        :param release_reason: for the log
        :returns: whether it had the lock and has it no more; False if it had none, or had lost it
        """
        hold = holds.of_run(task_name, lock_key)
        if hold is None:
            self._count("ownership_violations")
            log.warning("任务 %s 尝试释放不持有的锁 '%s': this run has no lease on it", task_name, lock_key)
            return False
        stood = hold.lease.living
        try:
            hold.leave()
        except LeaseLost as lost:
            log.warning("任务 %s: %s", task_name, lost)
            return False
        if hold.is_being_ended:
            self._count("normal_release_failures", "release_script_errors", "emergency_releases")
        if stood and release_reason != "normal":
            log.info("任务 %s 释放锁 '%s' (原因: %s)", task_name, lock_key, release_reason)
        return stood

    def get_statistics(self) -> dict[str, Any]:
        """The counts of the whole pool, over restarts of its programs and its daemon.

        :raises StoreUnavailable: if the store cannot be asked
        """
        return figures.statistics_of(pool.ask(pool.seen), hearing())

    def get_lock_health(self, lock_key: str = DEFAULT_KEY) -> dict[str, Any]:
        """How a lock is, and what is the matter with it; a store that is away is critical."""
        key = check_key(lock_key)
        try:
            return figures.health_of(pool.ask(pool.seen), key, hearing())
        except StoreUnavailable as away:
            return {
                "status": "critical",
                "issues": [str(away)],
                "lock_age": None,
                "last_lock_holder": None,
                "statistics": {},
                "timestamp": wall_ms() / 1000,
            }

    def get_lock_history(self, limit: int = 10) -> list[dict[str, Any]]:
        """The last attempts in the pool, at most 100, the latest last.

        :raises StoreUnavailable: if the store cannot be asked
        """
        return figures.history_of(pool.ask(pool.seen), min(limit, self.max_history_size))

    def get_lock_info(self, lock_key: str = DEFAULT_KEY) -> dict[str, Any]:
        """As `get_gpu_lock_status`: some of YiVideo's health checks call it so."""
        return get_gpu_lock_status(lock_key)

    def record_execution_time(self, execution_time: float) -> None:
        """Do nothing: how long each lease was held is counted where it ends."""

    @property
    def lock_stats(self) -> dict[str, Any]:
        """As `get_statistics`; a copy."""
        return self.get_statistics()

    @property
    def lock_history(self) -> list[dict[str, Any]]:
        """As `get_lock_history`; a copy."""
        return self.get_lock_history(self.max_history_size)

    @property
    def exception_stats(self) -> dict[str, int]:
        """How this manager's releases went wrong, counted since the process began; a copy."""
        with self._mutex:
            return dict(self._exceptions)

    def _count(self, *names: str) -> None:
        with self._mutex:
            for name in names:
                self._exceptions[name] += 1


lock_manager = SmartGpuLockManager()
