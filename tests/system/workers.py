"""The worker processes of these tests: `python -m tests.system.workers ROLE FOLDER NAME SEED ARGUMENTS(JSON)`.

A worker finds the pool by its environment, writes what it does into `FOLDER/NAME.jsonl`, takes the physical witness
inside each block, and ends when its standard input does.

- `loop` asks, holds and releases in a loop
- `obey` does what its standard input says: `ask`, `leave`, `cancel`, `block`, `stop`
- `fork` has used gpulockd and then forks children that use it too
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gpulockd import GpuLockError, LeaseLost, gpu_lock
from tests.system.history import Diary
from tests.system.witness import Overlap, using

PR_SET_PDEATHSIG = 1
STOPPED_S = 0.3
"""A lease that was granted so long (in seconds) before its body touched the gpu was stopped in between."""

GIVEN: dict[str, Any] = {"max_wait_time": 60}


class Worker:
    """What all roles share: the diary, the folder of the witness, and a block."""

    def __init__(self, folder: Path, name: str, seed: int, arguments: dict[str, Any]) -> None:
        self.folder = folder
        self.name = name
        self.random = random.Random(seed)
        self.arguments = arguments
        self.diary = Diary(folder / f"{name}.jsonl", name)
        log = logging.getLogger("gpulockd")
        log.addHandler(_ToDiary(self.diary))
        log.setLevel(logging.INFO)

    async def block(self, key: str, wish: dict[str, Any], leave: asyncio.Event | None) -> None:
        """Ask, be on the gpus until `leave` is set or for a moment, and release; all of it is noted."""
        wish = dict(wish)
        witnessed, blocks_s = wish.pop("witnessed", True), wish.pop("blocks_s", 0.0)
        memory_gib = int(str(wish.get("memory", "0GiB")).removesuffix("GiB"))
        self.diary.note("ask", key)
        try:
            async with gpu_lock(**GIVEN | wish) as lease:
                gpus = [gpu.key for gpu in lease.gpus]
                self.diary.note("enter", key, token=lease.token, gpus=gpus, lease=lease.id)
                try:
                    with using(self.folder, gpus if witnessed else [], memory_gib):
                        self.diary.note("use", key, token=lease.token, gpus=gpus)
                        if blocks_s:
                            time.sleep(blocks_s)
                        if leave is None:
                            await asyncio.sleep(self.random.uniform(*self.arguments["hold_s"]))
                        else:
                            await leave.wait()
                        self.diary.note("used", key, token=lease.token, gpus=gpus)
                except Overlap as where:
                    # A body that was stopped after it had begun is what only a guard can keep off the card.
                    stopped = lease.held_s > STOPPED_S
                    self.diary.note("stopped" if stopped else "OVERLAP", key, token=lease.token, gpus=[str(where)])
                    if stopped:
                        await lease.lost.wait()
            self.diary.note("left", key)
        except LeaseLost as lost:
            self.diary.note("lost", key, token=lost.token, text=lost.reason)
        except asyncio.CancelledError:
            self.diary.note("cancelled", key)
        except GpuLockError as refused:
            self.diary.note("refused", key, text=f"{type(refused).__name__}: {refused}")

    def block_here(self, key: str) -> None:
        """As `block`, for synchronous code."""
        self.diary.note("ask", key)
        with gpu_lock(**GIVEN) as lease:
            gpus = [gpu.key for gpu in lease.gpus]
            self.diary.note("enter", key, token=lease.token, gpus=gpus, lease=lease.id)
            try:
                with using(self.folder, gpus if self.arguments.get("witnessed", True) else []):
                    self.diary.note("use", key, token=lease.token, gpus=gpus)
                    time.sleep(self.random.uniform(*self.arguments["hold_s"]))
                    self.diary.note("used", key, token=lease.token, gpus=gpus)
            except Overlap as where:
                self.diary.note("OVERLAP", key, token=lease.token, gpus=[str(where)])
        self.diary.note("left", key)


class _ToDiary(logging.Handler):
    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary

    def emit(self, record: logging.LogRecord) -> None:
        self.diary.note("log", text=f"{record.levelname} {record.getMessage()}")


async def loop(worker: Worker) -> None:
    """Ask for one of the wishes, `rounds` times or for `for_s` seconds."""
    arguments = worker.arguments
    wishes: list[dict[str, Any]] = arguments.get("wishes", [{}])
    ends_at = time.monotonic() + arguments.get("for_s", 3600)
    for round in range(arguments.get("rounds", 1_000_000)):
        if time.monotonic() > ends_at:
            break
        which = worker.random.randrange(len(wishes))
        await worker.block(f"{which}/{round}", wishes[which], None)
    worker.diary.note("done")


async def obey(worker: Worker) -> None:
    """Do what the standard input says, one command a line."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    leave: dict[str, asyncio.Event] = {}
    tasks: dict[str, asyncio.Task[None]] = {}
    worker.diary.note("ready")
    while line := (await reader.readline()).decode():
        word, key, rest = [*line.strip().split(" ", 2), "", ""][:3]
        if word == "ask":
            leave[key] = asyncio.Event()
            tasks[key] = asyncio.create_task(worker.block(key, json.loads(rest or "{}"), leave[key]))
            # The request is written without waiting, where the connection stands.
            for _ in range(20):
                await asyncio.sleep(0)
            worker.diary.note("asked", key)
        elif word == "leave":
            leave[key].set()
        elif word == "cancel":
            tasks[key].cancel()
        elif word == "block":
            worker.diary.note("blocking", key)
            time.sleep(float(rest))
            worker.diary.note("unblocked", key)
    transport.close()


def fork(worker: Worker) -> None:
    """Use gpulockd, then fork; `how` says what the parent has at that moment and what it does then."""
    how = worker.arguments["how"]
    if how == "has_held":
        worker.block_here("before")
        _children(worker)
        worker.diary.note("done")
    elif how == "holds":
        with gpu_lock(**GIVEN) as lease:
            token = lease.token
            worker.diary.note("enter", "parent", token=token, gpus=[lease.gpu.key], lease=lease.id)
            child = os.fork()
            if child:
                _, status = os.waitpid(child, 0)
                _children(worker)
                lease.progress(50.0)
                worker.diary.note("still", "parent", token=token, text=f"{status} {lease.living}")
                sys.stdin.readline()
        if not child:
            # This one has left the parent's block, as a child does whose code simply goes on.
            os._exit(0)
        worker.diary.note("done")
    elif how == "waits":
        worker.block_here("before")
        if os.fork() == 0:
            # Forget the death of the parent, which the test brings about; the end of the input ends this one.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
            sys.stdin.readline()
            os._exit(0)
        worker.diary.note("forked")
        worker.block_here("after")


def _children(worker: Worker) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_child, args=(worker, f"{worker.name}.{n}")) for n in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        if child.exitcode:
            worker.diary.note("refused", text=f"a child ended with {child.exitcode}")


def _child(parent: Worker, name: str) -> None:
    worker = Worker(parent.folder, name, parent.random.randrange(1 << 30), parent.arguments)
    for round in range(parent.arguments["rounds"]):
        worker.block_here(str(round))
    worker.diary.note("done")


def main() -> None:
    """Run one role."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    role, folder, name, seed, arguments = sys.argv[1:]
    worker = Worker(Path(folder), name, int(seed), json.loads(arguments))
    if role == "fork":
        fork(worker)
    else:
        asyncio.run(loop(worker) if role == "loop" else obey(worker))


if __name__ == "__main__":
    main()
