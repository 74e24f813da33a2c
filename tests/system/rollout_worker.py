"""Programs that use the GPUs all the time: `python -m tests.system.rollout_worker PROCESSES CLIENTS HOLD_S`.

Each process is a session of its own, with so many clients in it. Every wait that times out is tried again: how long to
wait is the configuration's word. The whole group ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys

from gpulockd import GpuLockError, gpu_lock

PR_SET_PDEATHSIG = 1


async def client(hold_s: float) -> None:
    """Ask, hold and release for ever."""
    while True:
        try:
            async with gpu_lock(task="training"):
                await asyncio.sleep(hold_s)
        except GpuLockError:
            await asyncio.sleep(0.02)


async def clients(count: int, hold_s: float) -> None:
    """So many at once, until the process is ended."""
    await asyncio.gather(*(client(hold_s) for _ in range(count)))


def main(processes: int, count: int, hold_s: float) -> None:
    """Fork the processes and wait for the end of standard input."""
    parent, children = os.getpid(), []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() == parent:
                asyncio.run(clients(count, hold_s))
            os._exit(0)
        children.append(child)
    sys.stdin.buffer.read()
    for child in children:
        os.kill(child, signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
