"""Calls that may never return: each in its thread, and what a hung or abandoned one costs."""

from __future__ import annotations

import subprocess
import sys
import threading

import anyio
import pytest

from gpulockd.hardware.workers import HangsError, Worker


async def test_what_the_call_raises_is_raised_where_it_is_waited_for() -> None:
    """An error in the thread must be an answer, not a silence."""
    worker = Worker("test")

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await worker.do(fail, 10)
    assert await worker.do(lambda: 7, 10) == 7
    worker.close()


async def test_a_cancelled_call_is_waited_for_and_not_taken_for_a_hung_one() -> None:
    """Whoever gives up a question must not make the next asker believe that the driver hangs."""
    worker, release, begun = Worker("test"), threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(30)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.do, slow, 30)
        while not begun.is_set():  # noqa: ASYNC110 - the flag is a thread's
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.do, lambda: 1, 30)
        await anyio.sleep(0.05)
        assert not worker.hangs
        release.set()
    worker.close()


async def test_a_hung_call_is_not_waited_for_twice() -> None:
    """One deadline is the price; then the answer is immediate until the call returns."""
    worker, release = Worker("test"), threading.Event()
    with pytest.raises(HangsError) as first:
        await worker.do(lambda: release.wait(30), 0.05)
    assert not first.value.again
    for _ in range(100):  # each would cost ten seconds
        with pytest.raises(HangsError) as later:
            await worker.do(lambda: None, 10)
        assert later.value.again
    assert worker.hangs
    release.set()
    with anyio.fail_after(20):
        while worker.hangs:  # noqa: ASYNC110 - the flag is a thread's
            await anyio.sleep(0.01)
    assert await worker.do(lambda: "well", 10) == "well"
    worker.close()


def test_a_hung_call_does_not_keep_the_process_from_ending() -> None:
    """The daemon must be able to stop while the driver hangs; a service manager would have to kill it else."""
    program = """
import anyio, time
from gpulockd.hardware.workers import HangsError, Worker
async def main():
    try:
        await Worker("test").do(lambda: time.sleep(600), 0.05)
    except HangsError:
        print("hung")
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hung\n", "")
