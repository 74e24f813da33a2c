"""The processes of the recovery measurement: `python -m bench.victims KIND`.

A victim says `in PID` when its body has begun, PID being the process to kill. `next` waits in line each time it is told
to, says `began NS` (CLOCK_MONOTONIC) as the first line of its body, and leaves when told to. All end with their input.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import sys
import time

from gpulockd import gpu_lock

KEY = "gpu_lock:0"
WAIT_S = 120


def say(*words: object) -> None:
    """Say one line in one piece."""
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


def rest() -> None:
    """Block until the measurement has ended."""
    while os.read(0, 65536):
        continue


async def hold() -> None:
    """A library user with an event loop."""
    async with gpu_lock(KEY, max_wait_time=WAIT_S):
        say("in", os.getpid())
        await asyncio.to_thread(rest)


def hold_blocking() -> None:
    """A library user without one."""
    with gpu_lock(KEY, max_wait_time=WAIT_S):
        say("in", os.getpid())
        rest()


def hold_in_child() -> None:
    """A parent that has imported the library and used it; its child holds."""
    with gpu_lock(KEY, max_wait_time=WAIT_S):
        pass
    child = os.fork()
    if child == 0:
        hold_blocking()
        os._exit(0)
    os.waitpid(child, 0)


def hold_file(path: str) -> None:
    """No lock of ours: the kernel's on a file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    say("in", os.getpid())
    rest()


async def take_turns(path: str) -> None:
    """The one who comes next: `lock` or `file` to ask, any word to leave."""
    gc.freeze()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        if line == b"lock\n":
            async with gpu_lock(KEY, max_wait_time=WAIT_S):
                say("began", time.monotonic_ns())
                await reader.readline()
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            say("began", time.monotonic_ns())
            await reader.readline()
            os.close(descriptor)
        say("left")


def main(kind: str, path: str) -> None:
    """The process. `path`: the file of `file` and `next`."""
    if kind == "async":
        asyncio.run(hold())
    elif kind == "sync":
        hold_blocking()
    elif kind == "fork":
        hold_in_child()
    elif kind == "file":
        hold_file(path)
    else:
        asyncio.run(take_turns(path))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
