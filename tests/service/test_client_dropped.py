"""A lease that a program has lost sight of is said, as an open file is; nothing else is."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading

import pytest

from gpulockd import gpu_lock
from tests.pools import client_here, environment, offer, simulated, snapshot
from tests.servers import Server
from tests.service.test_client_forms import revoke


async def _acquire() -> None:
    await gpu_lock(task="resize").acquire()


def _drop_with_a_loop() -> None:
    asyncio.run(_acquire())
    gc.collect()


def _drop_with_a_thread() -> None:
    thread = threading.Thread(target=gpu_lock(task="resize").acquire_blocking)
    thread.start()
    thread.join()
    gc.collect()


def test_a_lease_that_is_dropped_is_said_with_its_task_and_stays_held(server: Server, pool: str) -> None:
    """A loop that has ended, and a thread, leave a GPU that nobody can give back; its work may go on, so it is kept."""
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        with pytest.warns(ResourceWarning, match=r"of task 'resize' was dropped without release\(\)"):
            _drop_with_a_loop()
        with pytest.warns(ResourceWarning, match="of task 'resize' was dropped"):
            _drop_with_a_thread()
        assert len(snapshot(server, pool).leases) == 2


def test_what_was_given_back_lost_or_shared_is_dropped_in_silence(server: Server, pool: str) -> None:
    """Each warning is an error here. A lease of a block lives as long as its block, whoever else forgets it."""
    offer(server, pool, simulated(2))

    async def main() -> None:
        lease = await gpu_lock(gpus=[0]).acquire()
        await lease.release()
        async with gpu_lock(gpus=[0]):
            with gpu_lock(gpus=[0]):
                gc.collect()
        lost = await gpu_lock(gpus=[1]).acquire()
        await asyncio.to_thread(revoke, server, pool)
        await asyncio.wait_for(lost.lost.wait(), 30)

    def thread() -> None:
        with gpu_lock():
            gc.collect()

    with client_here(server.url, pool):
        asyncio.run(main())
        gc.collect()
        one = threading.Thread(target=thread)
        one.start()
        one.join()
        gc.collect()
        assert not snapshot(server, pool).leases


AT_EXIT = """
import contextvars, gc, os
from gpulockd import gpu_lock
kept = contextvars.Context().run(gpu_lock().acquire_blocking)
child = os.fork()
if not child:
    del kept
    gc.collect()
    os._exit(0)
os.waitpid(child, 0)
"""


def test_the_end_of_a_program_and_a_forked_child_are_silent(server: Server, pool: str) -> None:
    """A program's end gives all back, and a child holds nothing; a warning there would come with every script."""
    offer(server, pool, simulated(1))
    ran = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", AT_EXIT],
        env=os.environ | environment(server.url, pool),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not snapshot(server, pool).leases
