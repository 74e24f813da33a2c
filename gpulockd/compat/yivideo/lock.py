"""`gpu_lock` in YiVideo's form: one key unless another is named, and its words when the wait was too long."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from gpulockd.client import lock as client
from gpulockd.client.lease import BlockingLease, Lease
from gpulockd.client.wishes import Duration
from gpulockd.compat.yivideo import holds
from gpulockd.compat.yivideo.leftovers import free_gpu_memory
from gpulockd.compat.yivideo.naming import takes_self, task_of
from gpulockd.errors import GpuLockTimeout
from gpulockd.model import DEFAULT_KEY

F = TypeVar("F", bound=Callable[..., Any])

TIMEOUT_PREFIX = "GPU_LOCK_TIMEOUT:"
"""By which the results of tasks that gave up are told."""


class gpu_lock(client.gpu_lock):
    """The right to use a GPU while a function runs: `@gpu_lock()` on methods, functions and Celery tasks.

    The task is called as its `self.name` says, else as the function; its id is that of the Celery request, if any.
    A body leaves no memory behind that torch or paddle keep for later: it is freed after the release.

    :param lock_key: the key of the lock
    :param timeout: the lease's own end after its last sign of life (seconds); the process's life is one
    :param poll_interval: how often to look while notifications are away (seconds)
    :param max_wait_time: longest wait in the queue (seconds)
    :param event_driven: accepted; waiting is always event-driven, with polling as a fallback
    :param fallback_timeout: accepted
    :param ours: whatever `gpulockd.gpu_lock` takes: priority, count, gpus, memory, ...
    :raises GpuLockTimeout: when entered; its text begins with `GPU_LOCK_TIMEOUT:`
    """

    def __init__(
        self,
        lock_key: str | None = DEFAULT_KEY,
        timeout: Duration | None = None,
        poll_interval: Duration | None = None,
        max_wait_time: Duration | None = None,
        event_driven: bool | None = None,
        fallback_timeout: Duration | None = None,
        **ours: Any,
    ) -> None:
        if lock_key == DEFAULT_KEY and (ours.get("gpus") is not None or ours.get("count") is not None):
            lock_key = None
        ours.setdefault("cleanup", free_gpu_memory)
        super().__init__(lock_key, timeout, poll_interval, max_wait_time, event_driven, fallback_timeout, **ours)

    def __call__(self, func: F) -> F:
        """Hold the lease while `func` runs: a function or method, `def` or `async def`, with or without arguments.

        :raises TypeError: for generators and classes
        """
        super().__call__(func)  # refuses what no lock can be held for
        has_self = takes_self(func)

        def called(args: tuple[Any, ...]) -> client.gpu_lock:
            return self._for_run(task_of(func, args[0] if has_self and args else None))

        if inspect.iscoroutinefunction(func):

            @functools.wraps(func)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                async with called(args):
                    return await func(*args, **kwargs)

            return run_async  # type: ignore[return-value] # same signature as `func`

        @functools.wraps(func)
        def run(*args: Any, **kwargs: Any) -> Any:
            with called(args):
                return func(*args, **kwargs)

        return run  # type: ignore[return-value] # same signature as `func`

    def _for_run(self, task: str) -> client.gpu_lock:
        """The same lock for one call, under the name of its task; what the decorator names goes before."""
        return self._named(self.job.task if self._names_task else task)

    def _named(self, task: str) -> client.gpu_lock:
        copy = gpu_lock.__new__(gpu_lock)
        copy.__dict__ |= super()._named(task).__dict__
        return copy

    async def __aenter__(self) -> Lease:
        try:
            return await super().__aenter__()
        except GpuLockTimeout as busy:
            raise self._gave_up(busy) from busy

    def __enter__(self) -> BlockingLease:
        try:
            lease = super().__enter__()
        except GpuLockTimeout as busy:
            raise self._gave_up(busy) from busy
        try:
            holds.begun(self, lease)
        except BaseException:  # a signal handler may raise anywhere
            super().__exit__(None, None, None)
            raise
        return lease

    def __exit__(self, *error: Any) -> None:
        try:
            holds.ended(self)
        finally:
            super().__exit__(*error)

    def _gave_up(self, busy: GpuLockTimeout) -> GpuLockTimeout:
        """The error in both phrases that people look for, with what is in the way."""
        if busy.message.startswith(TIMEOUT_PREFIX):
            return busy
        key, task = ",".join(self.wants.keys) or str(self.wants), self.job.task
        text = f"{TIMEOUT_PREFIX} 任务 {task} 无法获取锁 '{key}'，任务放弃执行 (无法获取GPU锁: {busy.message})"
        return GpuLockTimeout(text, waited_s=busy.waited_s, place=busy.place, queued=busy.queued)
