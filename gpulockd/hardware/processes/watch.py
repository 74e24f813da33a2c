"""Waiting for the death of many processes: one pidfd each, told by the event loop, no thread and no polling."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

import anyio

from gpulockd.hardware.processes.identity import Process, open_pidfd


class Watch:
    """Tells the death of each process that was added exactly once, also of one that was dead before.

    A death is told when the last thread has ended, whether or not the parent has waited for it: files are closed by
    then, those of the graphics driver too, unless another process has inherited them. Of one loop; enter and leave it
    there.
    """

    def __init__(self, died: Callable[[Process], None] = lambda _: None) -> None:
        """:param died: called on the loop, never inside `add`"""
        self._died = died
        self._pidfds: dict[Process, int] = {}
        self._told: dict[Process, asyncio.Handle] = {}
        self._waits: list[tuple[set[Process], anyio.Event]] = []

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in list(self._told.keys() | self._pidfds.keys()):
            self.discard(process)

    def add(self, process: Process, pidfd: int | None = None) -> None:
        """Watch a process until its death or `discard`.

        :param pidfd: one of this very process, the watch's from now on; without it one is opened
        :raises HiddenProcess: if /proc hides it
        :raises OSError: if no descriptor is left
        """
        if process in self:
            if pidfd is not None:
                os.close(pidfd)
            return
        if pidfd is None:
            pidfd = open_pidfd(process)
        if pidfd is None:
            self._told[process] = self._loop.call_soon(self._end, process)
            return
        self._pidfds[process] = pidfd
        self._loop.add_reader(pidfd, self._end, process)

    def discard(self, process: Process) -> None:
        """Watch it no longer; who waits for it waits no longer for it."""
        told = self._told.pop(process, None)
        if told is not None:
            told.cancel()
        pidfd = self._pidfds.pop(process, None)
        if pidfd is not None:
            # The reader goes first: a closed number may be another file's the next moment.
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        for waited, event in self._waits:
            waited.discard(process)
            if not waited:
                event.set()

    async def wait(self, processes: Collection[Process]) -> None:
        """Return once none of these is watched any more: each has died, was discarded or was never added."""
        waited = {process for process in processes if process in self}
        if not waited:
            return
        entry = (waited, anyio.Event())
        self._waits.append(entry)
        try:
            await entry[1].wait()
        finally:
            self._waits.remove(entry)

    def pidfd(self, process: Process) -> int | None:
        """The descriptor of a process that is watched, to signal through or to store; it stays the watch's."""
        return self._pidfds.get(process)

    def _end(self, process: Process) -> None:
        self.discard(process)
        self._died(process)

    def __contains__(self, process: object) -> bool:
        return process in self._pidfds or process in self._told

    def __len__(self) -> int:
        return len(self._pidfds) + len(self._told)

    def __repr__(self) -> str:
        return f"<Watch {len(self)}>"
