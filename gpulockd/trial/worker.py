"""`python -m gpulockd.trial.worker`: a process of a trial, with the client library that every program uses.

It reads rounds from its standard input, one JSON line each, and says what became of each task, one JSON line each.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time

import msgspec

from gpulockd import GpuLockError, GpuLockTimeout, gpu_lock
from gpulockd.trial.load import Start

GREETING_LIMIT = "60s"


class Round(msgspec.Struct, frozen=True):
    """Tasks to do. Their `at_s` counts from `begin_s` (seconds on CLOCK_MONOTONIC, which all processes share).

    With `until_s`, on the same clock, each is done again and again until then.
    """

    begin_s: float
    starts: list[Start]
    until_s: float = 0.0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a task: how long it waited (in seconds), and why it failed ("" if it did not)."""

    task: str
    waited_s: float
    timed_out: bool = False
    trouble: str = ""


async def do(start: Start, begin_s: float) -> Outcome:
    """Do one task at its time. Everything that a call may leave out comes from the configuration."""
    await asyncio.sleep(max(0.0, begin_s + start.at_s - time.monotonic()))
    asked_s = time.monotonic()
    entered_s: float | None = None
    try:
        async with gpu_lock(start.key, task=start.task):
            entered_s = time.monotonic()
            await asyncio.sleep(start.hold_s)
    except GpuLockTimeout as late:
        return Outcome(task=start.task, waited_s=time.monotonic() - asked_s, timed_out=True, trouble=str(late))
    except GpuLockError as wrong:
        waited_s = (entered_s or time.monotonic()) - asked_s
        return Outcome(task=start.task, waited_s=waited_s, trouble=f"{type(wrong).__name__}: {wrong}")
    return Outcome(task=start.task, waited_s=entered_s - asked_s)


async def repeat(start: Start, asked: Round) -> list[Outcome]:
    """Do a task once, or again and again until the end of the round."""
    done = [await do(start, asked.begin_s)]
    while time.monotonic() < asked.until_s:
        done.append(await do(start, asked.begin_s))
    return done


def tell(said: object) -> None:
    """Say one line of JSON."""
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


async def main() -> None:
    """Meet the daemon, say so, and do rounds until the standard input ends."""
    # A trial in which programs poll has cut them off on purpose.
    logging.getLogger("gpulockd").setLevel(logging.ERROR)
    # A lock on a name of its own opens the session and the subscription before anything is measured.
    async with gpu_lock("trial:greeting", max_wait_time=GREETING_LIMIT):
        pass
    tell({"ready": True})
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        asked = msgspec.json.decode(line, type=Round)
        async with asyncio.TaskGroup() as group:
            done = [group.create_task(repeat(start, asked)) for start in asked.starts]
        tell([outcome for task in done for outcome in task.result()])


if __name__ == "__main__":
    asyncio.run(main())
