"""`python -m gpulockd.trial.drill.holder FOLDER`: a program of a drill, which takes a GPU when told.

In its body it holds a kernel file lock of that GPU in FOLDER. The kernel takes it back only when the process is gone or
the body has ended, so two bodies at once are seen whatever the ledger believes.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpulockd import GpuLockError, LeaseLost, gpu_lock

PR_SET_PDEATHSIG = 1
GREETING_LIMIT = "60s"


def tell(**said: Any) -> None:
    """Say one line of JSON, with the time on CLOCK_MONOTONIC, which all processes share."""
    sys.stdout.write(json.dumps({**said, "at_s": time.monotonic()}) + "\n")
    sys.stdout.flush()


@contextmanager
def witnessed(folder: str, key: str) -> Iterator[bool]:
    """Hold the kernel's lock of a GPU meanwhile, and say whether nobody else had it."""
    descriptor = os.open(os.path.join(folder, f"witness-{key.rpartition(':')[2]}"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        alone = False
    try:
        yield alone
    finally:
        os.close(descriptor)


async def hold(folder: str, key: str, limits: dict[str, float], leaving: asyncio.Event) -> None:
    """Take the GPU, hold it until told to leave, and say what happened."""
    try:
        levels = [limits.get(name) for name in ("warning", "soft_timeout", "hard_timeout")]
        lock = gpu_lock(key, task="drill", warning=levels[0], soft_timeout=levels[1], hard_timeout=levels[2])
        async with lock as lease:
            with witnessed(folder, key) as alone:
                tell(said="entered", token=lease.token, key=key, alone=alone)
                await leaving.wait()
        tell(said="left", key=key)
    except LeaseLost as lost:
        tell(said="lost", key=key, why=str(lost))
    except GpuLockError as wrong:
        tell(said="failed", key=key, why=str(wrong))


async def main(folder: str) -> None:
    """Meet the daemon, say so, and do as told until the standard input ends."""
    # It may be stopped when the drill is killed, and a stopped process heeds nothing but this.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    logging.getLogger("gpulockd").setLevel(logging.CRITICAL)
    async with gpu_lock("drill:greeting", max_wait_time=GREETING_LIMIT):
        pass
    tell(said="ready")
    leaving, holding = asyncio.Event(), None
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        told = json.loads(line)
        if told["do"] == "enter":
            leaving = asyncio.Event()
            holding = asyncio.create_task(hold(folder, told["key"], told["limits"], leaving))
        else:
            leaving.set()
    if holding is not None:
        holding.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
