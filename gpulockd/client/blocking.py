"""The portal of sync users: one event loop in one daemon thread a process, started at first use.

There is one implementation of the protocol, the asynchronous one; threads call into it here.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from gpulockd.client import frameworks
from gpulockd.errors import GpuLockError

T = TypeVar("T")


class Portal:
    """A running event loop that threads can call.

    :raises GpuLockError: if none can begin; the next call tries again
    """

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._portal: BlockingPortal | None = None
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gpulockd-portal", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._portal is None:
            raise GpuLockError(f"no thread for synchronous code could begin: {self._failed}") from self._failed

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as failed:  # noqa: BLE001 # who waits for it must hear of it
            self._failed = failed
            self._ready.set()

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._portal = portal
            self._ready.set()
            await portal.sleep_until_stopped()

    def call(self, func: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an async function in the portal's loop and wait for it; an interrupt here cancels it there."""
        assert self._portal is not None
        future: Future[T] = self._portal.start_task_soon(func, *args)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def later(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run an async function in the portal's loop without waiting for it."""
        assert self._portal is not None
        self._portal.start_task_soon(func, *args)


_portal: Portal | None = None
_mutex = threading.Lock()


def portal() -> Portal:
    """The portal of this process."""
    global _portal
    if _portal is None:
        frameworks.check_threads()
        with _mutex:
            if _portal is None:
                _portal = Portal()
    return _portal


def forget_after_fork() -> None:
    """A forked child has no portal thread; it starts its own at first use."""
    global _portal, _mutex
    if _portal is not None:
        _parked.append(_portal)
    _portal, _mutex = None, threading.Lock()


_parked: list[Portal] = []
