"""A thread of its own for calls that may never return, so that a hung one holds up nobody else.

The threads are daemons: a call that hangs in the driver must not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

import anyio

T = TypeVar("T")

Job = Callable[[], None]


class HangsError(Exception):
    """A call has not returned within its deadline. `again`: an earlier one still hangs and this was not begun."""

    def __init__(self, *, again: bool) -> None:
        super().__init__("still hangs" if again else "hangs")
        self.again = again


class Worker:
    """One thread that makes one call at a time, started by the first; it belongs to one event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = anyio.Lock()
        self._earlier: anyio.Event | None = None
        self._hung = False

    def __repr__(self) -> str:
        return f"<Worker {self._name}{' hung' if self._hung else ''}>"

    @property
    def hangs(self) -> bool:
        """Whether a call is beyond its deadline now."""
        return self._hung and self._earlier is not None and not self._earlier.is_set()

    async def do(self, call: Callable[[], T], deadline_s: float) -> T:
        """Return what `call` returns, in this worker's thread.

        A caller that is cancelled leaves the call to end by itself; the next one waits for it.

        :param deadline_s: how long to wait for it (in seconds)
        :raises HangsError: if it has not returned by then, or if an earlier one has not and still does not
        """
        async with self._lock:
            await self._free(deadline_s)
            done = self._earlier = anyio.Event()
            outcome: list[T | BaseException] = []
            self._submit(_job(call, outcome, done, asyncio.get_running_loop()))
            with anyio.move_on_after(deadline_s):
                await done.wait()
            if not done.is_set():
                self._hung = True
                raise HangsError(again=False)
        found = outcome[0]
        if isinstance(found, BaseException):
            raise found
        return found

    async def _free(self, deadline_s: float) -> None:
        """Wait for a call whose caller was cancelled; do not wait again for one that is known to hang."""
        earlier = self._earlier
        if earlier is None or earlier.is_set():
            self._hung = False
            return
        if not self._hung:
            with anyio.move_on_after(deadline_s):
                await earlier.wait()
        self._hung = not earlier.is_set()
        if self._hung:
            raise HangsError(again=True)

    def _submit(self, job: Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Let the thread end as soon as its present call returns."""
        self._jobs.put(None)


def _work(jobs: SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job


def _job(
    call: Callable[[], T], outcome: list[T | BaseException], done: anyio.Event, loop: asyncio.AbstractEventLoop
) -> Job:
    def job() -> None:
        try:
            outcome.append(call())
        except BaseException as trouble:  # noqa: BLE001 - it is raised where the caller waits
            outcome.append(trouble)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    return job
