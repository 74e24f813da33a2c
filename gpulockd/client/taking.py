"""A thread's way to a lease: it is taken in the portal, and given back if the thread is interrupted on the way.

A signal handler may raise at any moment (Ctrl-C, Celery's soft time limit). So the portal's task puts the lease into a
box that the thread made before; whatever is in it when the thread leaves without keeping it, is given back.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from gpulockd.client.blocking import portal
from gpulockd.client.getting import Getting
from gpulockd.client.lease import BlockingLease, Lease
from gpulockd.errors import GpuLockError, GpuLockTimeout

if TYPE_CHECKING:  # names of types only
    from gpulockd.client.lock import gpu_lock

UNDER_WAY_S = 10.0
"""How long an interrupted request may still be under way (in seconds) before nobody waits for it any more."""


class Blocking:
    """Takes a lease for a thread, once; leaving the block without `keep` gives it back."""

    def __init__(self, lock: gpu_lock, *, waits: bool = True) -> None:
        """:param waits: whether it may take its time, which in a thread that runs an event loop is warned of"""
        if waits and _loop_runs_here():
            _say_that_it_blocks()
        self._getting = Getting(lock)
        self._portal = portal()
        self._box: list[Lease] = []
        self._begun = self._done = self._kept = False

    def __enter__(self) -> Self:
        return self

    def lease(self, max_wait_s: float | None) -> BlockingLease:
        """Wait for the lease.

        :param max_wait_s: overrides the lock's own wait limit (in seconds)
        :raises GpuLockError: in a thread that runs an event loop, if it is not granted at once
        """
        in_loop = _loop_runs_here()
        while True:
            try:
                self._portal.call(self._take, 0.0 if in_loop else max_wait_s)
            except GpuLockTimeout as busy:
                if in_loop and max_wait_s is None:
                    text = f"{busy.message}; waiting here would block the event loop: use 'async with gpu_lock()'"
                    raise GpuLockError(text) from busy
                raise
            # The last look at the clock, in the thread whose body begins.
            if self._box[0].stands:
                return BlockingLease(self._portal, self._box[0])
            self._portal.call(self._box.pop()._undo)

    def keep(self) -> None:
        """The lease has found its place; leaving the block keeps it."""
        self._kept = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept and (self._box or not self._done):
            self._portal.later(self._give_back)

    async def _take(self, max_wait_s: float | None) -> None:
        self._begun, self._done = True, False
        try:
            self._box.append(await self._getting.lease(max_wait_s))
        finally:
            self._done = True

    async def _give_back(self) -> None:
        with anyio.move_on_after(UNDER_WAY_S):
            while not self._done:  # noqa: ASYNC110 - the task may never begin, so nobody could set an event
                await anyio.sleep(0.005)
        for lease in self._box:
            await lease._end()


def _say_that_it_blocks() -> None:
    """Warn at the line of the program that asks, so once for each; with a free GPU it would go unnoticed."""
    level, frame = 1, sys._getframe()
    while frame.f_globals.get("__name__", "").startswith("gpulockd.") and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "'with gpu_lock()' in a thread that runs an event loop blocks that loop, and fails where it would have to "
        "wait: use 'async with gpu_lock()'",
        RuntimeWarning,
        stacklevel=level,
    )


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return threading.current_thread().name != "gpulockd-portal"
