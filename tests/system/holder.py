"""A program that holds GPU 0: `python -m tests.system.holder FOLDER NAME MODE`. It is on the card while it has its
flock.

It writes `NAME.in` (token) when its body begins, `NAME.lost` when it is told of a loss and `NAME.out` when its body has
ended, and leaves when the file `NAME.leave` appears. Modes: `async`, `sync`, `deaf` (an async body that blocks its loop
and heeds nothing), `forks` (a child that goes on alone is on the card too; SIGTERM is nothing to it),
`mute` (its `leave` is heard and its release never sent), `execs` (it becomes another program that is on the card too),
`drops` (it becomes another user).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets  # noqa: F401 # redis-py loads it late, when `drops` may not read Python's own folder any more
import signal
import sys
import time
from pathlib import Path

from gpulockd import GpuLockError, gpu_lock

NOBODY = 65534


class Card:
    """The physical card: one flock, kept open by whoever is on it."""

    def __init__(self, folder: Path) -> None:
        self.descriptor = os.open(folder / "card", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (folder / "OVERLAP").touch()
            raise

    def close(self) -> None:
        os.close(self.descriptor)


def main(folder: Path, name: str, mode: str, wish: str) -> None:
    leave = folder / f"{name}.leave"
    given = {"max_wait_time": 120, "task": name} | eval(wish or "{}")
    lock = gpu_lock("gpu_lock:0", **given)

    def begin(token: int) -> Card:
        card = Card(folder)
        if mode == "forks" and os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (folder / f"{name}.child").write_text(str(os.getpid()))
            time.sleep(120)
            os._exit(0)
        (folder / f"{name}.in").write_text(str(token))
        if mode == "execs":
            os.set_inheritable(card.descriptor, True)
            os.execv("/bin/sleep", ["sleep", "120"])
        if mode == "drops":
            os.setresuid(NOBODY, NOBODY, NOBODY)
        return card

    async def hold() -> None:
        async with lock as lease:
            card = begin(lease.token)
            if mode == "mute":
                card.close()
                lease._line.guard.leave(lease._entry)
                await asyncio.sleep(120)
            try:
                while not leave.exists():
                    if mode == "deaf":
                        signal.signal(signal.SIGTERM, signal.SIG_IGN)
                        time.sleep(0.05)
                    else:
                        await asyncio.sleep(0.02)
            finally:
                card.close()

    try:
        if mode == "sync":
            with lock as held:
                card = begin(held.token)
                while not leave.exists() and not held.lost.is_set():
                    time.sleep(0.02)
                card.close()
        else:
            asyncio.run(hold())
    except GpuLockError as error:
        (folder / f"{name}.lost").write_text(f"{type(error).__name__}: {error}")
    (folder / f"{name}.out").touch()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else "")
