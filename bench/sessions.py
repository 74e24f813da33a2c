"""Many programs of one host, as light as they can be: `python -m bench.sessions COUNT HELD`.

One process imports the library and forks COUNT children, each a session of its own; the first HELD of them hold a share
of a card, the others have held one once. Each says `in` (one line) when it is there; all end with their input.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys

from gpulockd import gpu_lock

SHARE = "4GiB"
WAIT_S = 120


async def live(holds: bool) -> None:
    """A program: idle, or in its body."""
    asyncio.get_running_loop().add_reader(0, _end_with_input)
    async with gpu_lock(memory=SHARE, max_wait_time=WAIT_S):
        if holds:
            await _rest()
    await _rest()


async def _rest() -> None:
    os.write(1, b"in\n")
    await asyncio.Event().wait()


def _end_with_input() -> None:
    if not os.read(0, 4096):
        os._exit(0)


def main(count: int, held: int) -> None:
    """The parent of all."""
    gc.freeze()
    children = []
    for n in range(count):
        child = os.fork()
        if child == 0:
            asyncio.run(live(n < held))
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
