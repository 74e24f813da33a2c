"""One process of waiters. The parent tells it over a pipe which drain to take part in; it sends back its time stamps.

All stamps are CLOCK_MONOTONIC, which is one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple

from bench.contenders import CONTENDERS, Contender, PythonRedisLock

if TYPE_CHECKING:  # generic only for the type checker
    from multiprocessing.sharedctypes import Synchronized

    Counter = Synchronized[int]

now_ns = time.monotonic_ns


class Drain(NamedTuple):
    """One line: place 0 holds until it is told to go; once it holds, the others ask one after the other."""

    contender: str
    name: str
    places: tuple[int, ...]
    waiters: int
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
    """The waiters of one process. `begun` counts, over all processes, the waiters whose turn has come in a drain."""

    def __init__(self, pipe: Connection, url: str, number: int, workers: int, begun: Counter) -> None:
        self.pipe = pipe
        self.make: Callable[[str], Contender] = lambda name: CONTENDERS[name](url, number, workers)
        self.begun = begun
        self.contenders: dict[str, Contender] = {}
        self.heard: asyncio.Queue[Drain | Begin | str] = asyncio.Queue()
        self._mutex = threading.Lock()

    async def run(self) -> None:
        """Take part in drains until the parent says "quit"."""
        asyncio.get_running_loop().add_reader(self.pipe.fileno(), self._hear)
        while isinstance(drain := await self.heard.get(), Drain):
            contender = self.contenders.get(drain.contender)
            if contender is None:
                contender = self.contenders[drain.contender] = self.make(drain.contender)
                await contender.open()
            if isinstance(contender, PythonRedisLock):
                stamps = await ThreadLine(self, drain).run(contender)
            else:
                stamps = await TaskLine(self, drain).run(contender)
            self.say(dict(contender.messages))
            contender.messages.clear()
            self.say(stamps)
        for contender in self.contenders.values():
            await contender.aclose()

    def _hear(self) -> None:
        try:
            self.heard.put_nowait(self.pipe.recv())
        except EOFError:  # the parent is gone
            os._exit(1)

    def say(self, what: object) -> None:
        """Tell the parent, from any thread."""
        with self._mutex:
            self.pipe.send(what)

    async def told(self, *words: str) -> str:
        """The parent's next word, which is one of these."""
        said = await self.heard.get()
        assert said in words, said
        return str(said)

    async def told_when(self) -> int:
        """The time at which place 1 asks (in ns)."""
        said = await self.heard.get()
        assert isinstance(said, Begin), said
        return said.at_ns

    def is_last(self, drain: Drain) -> bool:
        """Count one more turn. Whether it was the last: whoever has it says "done" and leaves after the measurement."""
        with self.begun.get_lock():
            self.begun.value += 1
            last = self.begun.value == drain.waiters
        if last:
            self.say("done")
        return last


class TaskLine:
    """The places of one drain as tasks."""

    def __init__(self, worker: Worker, drain: Drain) -> None:
        self.worker = worker
        self.drain = drain
        self.stamps: list[Stamps] = []
        self._asking = len(drain.places)
        self._go = asyncio.Event()
        self._stopped = asyncio.Event()
        self._begins: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self, contender: Contender) -> list[Stamps]:
        """Take part until the parent ends it: "stop" when all had their turn, "cut" when it took too long."""
        tasks = [asyncio.create_task(self._place(contender, i)) for i in self.drain.places]
        self._begins.set_result(await self.worker.told_when())
        if 0 in self.drain.places:
            await self.worker.told("go")
            self._go.set()
        ended = await self.worker.told("stop", "cut")
        self._stopped.set()
        pending = set(tasks) if ended == "cut" else set()
        while pending:  # Python 3.11's `wait_for`, which redis-py uses, can swallow a cancellation
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.5)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and ended == "stop":
                raise result
        return self.stamps

    def _count(self) -> None:
        self._asking -= 1
        if self._asking == 0:
            self.worker.say("asked")

    async def _place(self, contender: Contender, i: int) -> None:
        drain = self.drain
        if i > 0:
            await asyncio.sleep(_until_s(drain, i, await self._begins))
            self._count()
        asked = now_ns()
        await contender.enter(drain.name, i)
        began = now_ns()
        if i == 0:
            self.worker.say("holding")
            self._count()
            await self._go.wait()
        else:
            await asyncio.sleep(drain.hold_s)
        last = i > 0 and self.worker.is_last(drain)
        left = now_ns()
        self.stamps.append(Stamps(i, asked, began, left))
        if last:
            await self._stopped.wait()
        await contender.leave(drain.name, i)


class ThreadLine:
    """The places of one drain as threads."""

    def __init__(self, worker: Worker, drain: Drain) -> None:
        self.worker = worker
        self.drain = drain
        self.stamps: list[Stamps] = []
        self._asking = len(drain.places)
        self._mutex = threading.Lock()
        self._go = threading.Event()
        self._stopped = threading.Event()
        self._begins: Future[int] = Future()

    async def run(self, contender: PythonRedisLock) -> list[Stamps]:
        """As `TaskLine.run`; a thread cannot be cut, so all have their turn, but hold no more."""
        threads = [threading.Thread(target=self._place, args=(contender, i), daemon=True) for i in self.drain.places]
        for thread in threads:
            thread.start()
        self._begins.set_result(await self.worker.told_when())
        if 0 in self.drain.places:
            await self.worker.told("go")
            self._go.set()
        await self.worker.told("stop", "cut")
        self._stopped.set()
        await asyncio.to_thread(_join, threads)
        return self.stamps

    def _count(self) -> None:
        with self._mutex:
            self._asking -= 1
            if self._asking == 0:
                self.worker.say("asked")

    def _place(self, contender: PythonRedisLock, i: int) -> None:
        drain = self.drain
        if i > 0:
            time.sleep(_until_s(drain, i, self._begins.result()))
            self._count()
        asked = now_ns()
        contender.enter_blocking(drain.name, i)
        began = now_ns()
        if i == 0:
            self.worker.say("holding")
            self._count()
            self._go.wait()
        elif not self._stopped.is_set():
            time.sleep(drain.hold_s)
        last = i > 0 and not self._stopped.is_set() and self.worker.is_last(drain)
        left = now_ns()
        self.stamps.append(Stamps(i, asked, began, left))
        if last:
            self._stopped.wait()
        contender.leave_blocking(drain.name, i)


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def _until_s(drain: Drain, i: int, begins_ns: int) -> float:
    """How long until place `i` asks (in seconds)."""
    return max(0.0, (begins_ns - now_ns()) / 1e9 + (i - 1) * drain.spacing_s)


def _end_process(failed: threading.ExceptHookArgs) -> None:
    """A place that fails ends its process, and so the run: the parent would wait for its turn for ever."""
    threading.__excepthook__(failed)
    os._exit(1)


def main(pipe: Connection, url: str, number: int, workers: int, begun: Counter) -> None:
    """The process."""
    logging.basicConfig(level=logging.ERROR)
    threading.excepthook = _end_process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    gc.freeze()
    asyncio.run(Worker(pipe, url, number, workers, begun).run())
