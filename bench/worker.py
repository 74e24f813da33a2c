"""One process of waiters. The parent tells it over a pipe which drain to take part in; it sends back its time stamps.

All stamps are CLOCK_MONOTONIC, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import NamedTuple

from bench.contenders import CONTENDERS, Contender, PythonRedisLock

now_ns = time.monotonic_ns


class Drain(NamedTuple):
    """One line: place 0 holds until it is told to go; once it holds, the others ask one after the other."""

    contender: str
    name: str
    places: tuple[int, ...]
    spacing_s: float
    hold_s: float


class Begin(NamedTuple):
    """Place 0 holds: place 1 asks at `at_ns`, the others `spacing_s` after each other."""

    at_ns: int


class Stamps(NamedTuple):
    """What one place saw (in ns): when it asked, when its body began, when it called release."""

    place: int
    asked: int
    began: int
    left: int


class Worker:
    """The waiters of one process."""

    def __init__(self, pipe: Connection, url: str, number: int, workers: int) -> None:
        self.pipe = pipe
        self.make: Callable[[str], Contender] = lambda name: CONTENDERS[name](url, number, workers)
        self.contenders: dict[str, Contender] = {}
        self.heard: asyncio.Queue[Drain | Begin | str] = asyncio.Queue()

    async def run(self) -> None:
        """Take part in drains until the parent says "quit"."""
        asyncio.get_running_loop().add_reader(self.pipe.fileno(), self._hear)
        while isinstance(drain := await self.heard.get(), Drain):
            contender = self.contenders.get(drain.contender)
            if contender is None:
                contender = self.contenders[drain.contender] = self.make(drain.contender)
                await contender.open()
            if isinstance(contender, PythonRedisLock):
                await self._drain_threads(contender, drain)
            else:
                await self._drain_tasks(contender, drain)

    def _hear(self) -> None:
        self.heard.put_nowait(self.pipe.recv())

    async def _told(self, word: str) -> None:
        said = await self.heard.get()
        assert said == word, said

    async def _told_when(self) -> int:
        said = await self.heard.get()
        assert isinstance(said, Begin), said
        return said.at_ns

    async def _drain_tasks(self, contender: Contender, drain: Drain) -> None:
        stamps: list[Stamps] = []
        asking, go = len(drain.places), asyncio.Event()

        def count() -> None:
            nonlocal asking
            asking -= 1
            if asking == 0:
                self.pipe.send("asked")

        async def place(i: int) -> None:
            if i > 0:
                await asyncio.sleep(_until_s(drain, i, await begins))
                count()
            asked = now_ns()
            await contender.enter(drain.name, i)
            began = now_ns()
            if i == 0:
                self.pipe.send("holding")
                count()
                await go.wait()
            else:
                await asyncio.sleep(drain.hold_s)
            left = now_ns()
            stamps.append(Stamps(i, asked, began, left))
            await contender.leave(drain.name, i)

        begins = asyncio.ensure_future(self._told_when())
        tasks = [asyncio.create_task(place(i)) for i in drain.places]
        await begins
        if 0 in drain.places:
            await self._told("go")
            go.set()
        all_done: asyncio.Future[list[None]] = asyncio.gather(*tasks)
        stop: asyncio.Future[None] = asyncio.create_task(self._told("stop"))
        await asyncio.wait((all_done, stop), return_when=asyncio.FIRST_COMPLETED)
        if all_done.done():
            all_done.result()
            self.pipe.send("done")
            await stop
        else:
            all_done.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await all_done
            await asyncio.wait(tasks)
        self.pipe.send(stamps)

    async def _drain_threads(self, contender: PythonRedisLock, drain: Drain) -> None:
        stamps: list[Stamps] = []
        asking, go, stopped, mutex = len(drain.places), threading.Event(), threading.Event(), threading.Lock()
        begins_ns: Future[int] = Future()

        def count() -> None:
            nonlocal asking
            with mutex:
                asking -= 1
                if asking == 0:
                    self.pipe.send("asked")

        def place(i: int) -> None:
            if i > 0:
                time.sleep(_until_s(drain, i, begins_ns.result()))
                count()
            asked = now_ns()
            contender.enter_blocking(drain.name, i)
            began = now_ns()
            if i == 0:
                self.pipe.send("holding")
                count()
                go.wait()
            elif not stopped.is_set():
                time.sleep(drain.hold_s)
            left = now_ns()
            stamps.append(Stamps(i, asked, began, left))
            contender.leave_blocking(drain.name, i)

        threads = [threading.Thread(target=place, args=(i,), daemon=True) for i in drain.places]
        for thread in threads:
            thread.start()
        begins_ns.set_result(await self._told_when())
        if 0 in drain.places:
            await self._told("go")
            go.set()
        stop = asyncio.create_task(self._told("stop"))
        all_done = asyncio.create_task(asyncio.to_thread(_join, threads))
        await asyncio.wait({all_done, stop}, return_when=asyncio.FIRST_COMPLETED)
        if all_done.done():
            self.pipe.send("done")
        await stop
        stopped.set()
        await all_done
        self.pipe.send(stamps)


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def _until_s(drain: Drain, i: int, begins_ns: int) -> float:
    """How long until place `i` asks (in seconds)."""
    return max(0.0, (begins_ns - now_ns()) / 1e9 + (i - 1) * drain.spacing_s)


def main(pipe: Connection, url: str, number: int, workers: int) -> None:
    """The process."""
    logging.basicConfig(level=logging.ERROR)
    gc.freeze()
    asyncio.run(Worker(pipe, url, number, workers).run())
