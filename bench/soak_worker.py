"""A program that lives off the pool for ever: `python -m bench.soak_worker WITNESS SEED SLOW_S`.

It asks for all that can be asked for, holds for a moment, gives up, is cancelled; it ends with its input. In each body
it takes an flock on the witness file of every card it was given: exclusively, or shared with a budget. A lock that is
refused means two in the body: it says `overlap` and where. After every turn it says `turn` and how many it has had.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gpulockd import GpuLockTimeout, Lease, LeaseLost, WouldDeadlock, gpu_lock

HOLD_S = (0.005, 0.1)


@contextmanager
def witnessed(folder: str, lease: Lease, *, shared: bool) -> Iterator[None]:
    """The body of `lease`, seen by the kernel's locks."""
    files = [os.open(f"{folder}/{gpu.key}", os.O_RDWR | os.O_CREAT, 0o600) for gpu in lease.gpus]
    try:
        for file, gpu in zip(files, lease.gpus, strict=True):
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                print("overlap", gpu.key, lease.token, flush=True)
        yield
    finally:
        for file in files:
            os.close(file)


async def turn(folder: str, dice: random.Random) -> None:
    """One request of a random kind, and a short body."""
    count, memory, key = 1, None, None
    kind = dice.random()
    if kind < 0.1:
        count = 2
    elif kind < 0.3:
        memory = f"{dice.choice((4, 8, 16))}GiB"
    elif kind < 0.4:
        key = f"gpu_lock:{dice.randrange(8)}"
    elif kind < 0.45:
        key = "gpu_lock:soak-slot"  # a slot without hardware, made and forgotten
    patience_s = dice.choice((0, 0.02, 60, 60, 60))
    lock = gpu_lock(key, count=count if key is None else None, memory=memory, max_wait_time=patience_s,
                    priority=dice.choice((0, 0, 0, 5)), task=f"soak-{dice.randrange(5)}")  # fmt: skip
    async with lock as lease:
        with witnessed(folder, lease, shared=memory is not None):
            await asyncio.sleep(dice.uniform(*HOLD_S))
            if dice.random() < 0.1:
                await lease.progress(50.0, "half")


async def live(folder: str, seed: int, slow_s: float) -> None:
    """Turns until the input ends; each tenth is cancelled at a random moment."""
    asyncio.get_running_loop().add_reader(0, _end_with_input)
    dice, turns = random.Random(seed), 0
    while True:
        try:
            if dice.random() < 0.1:
                async with asyncio.timeout(dice.uniform(0.0, 0.05)):
                    await turn(folder, dice)
            else:
                await turn(folder, dice)
        except (TimeoutError, GpuLockTimeout, WouldDeadlock):
            pass
        except LeaseLost as lost:
            print("lost", str(lost).replace("\n", " "), flush=True)
        turns += 1
        print("turn", turns, flush=True)
        await asyncio.sleep(dice.uniform(0.0, slow_s))


def _end_with_input() -> None:
    if not os.read(0, 4096):
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(live(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
