"""The portal of sync users: one event loop in one daemon thread a process, started at first use.

There is one implementation of the protocol, the asynchronous one; threads call into it here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

import anyio

from gpulockd.client import frameworks
from gpulockd.errors import GpuLockError

T = TypeVar("T")


class Portal:
    """A running event loop that threads can call.

    A signal handler may raise at any bytecode of the thread that waits, also between taking a lock of Python's own and
    the block that gives it back; such a lock would be held for ever, and this loop with it. So threads hand over and
    wait by what is one step for Python: `call_soon_threadsafe` and `SimpleQueue`.

    :raises GpuLockError: if none can begin; the next call tries again
    """

    def __init__(self) -> None:
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gpulockd-portal", daemon=True)
        self._thread.start()
        self._ready.get()
        if self._loop is None:
            raise GpuLockError(f"no thread for synchronous code could begin: {self._failed}") from self._failed

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as failed:  # noqa: BLE001 # who waits for it must hear of it
            self._failed = failed
            self._ready.put(None)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready.put(None)
        await anyio.sleep_forever()

    def call(self, func: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run an async function in the portal's loop and wait for it; an interrupt here cancels it there."""
        answer: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        working: list[anyio.CancelScope] = []
        interrupted: list[bool] = []

        async def work() -> None:
            found: T | None = None
            failed: BaseException | None = asyncio.CancelledError()
            try:
                with anyio.CancelScope() as scope:
                    working.append(scope)
                    if interrupted:
                        scope.cancel()
                    found, failed = await func(*args), None
            except BaseException as error:  # noqa: BLE001 # it is the caller's
                failed = error
            answer.put((found, failed))

        def stop() -> None:
            interrupted.append(True)
            for scope in working:
                scope.cancel()

        try:
            self._begin(work)
            value, error = answer.get()
        except BaseException:
            self._soon(stop)
            raise
        if error is not None:
            raise error
        return value  # type: ignore[return-value] # there is one where nothing failed

    def later(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run an async function in the portal's loop without waiting for it."""

        async def work() -> None:
            with suppress(Exception):  # nobody is there to hear of it
                await func(*args)

        self._begin(work)

    def _begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin a task of that loop, with the context of this thread."""

        def begin() -> None:
            task = asyncio.ensure_future(work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._soon(begin)

    def _soon(self, act: Callable[[], object]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(act, context=copy_context())


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
