"""Rows of the matrix about the processes themselves: short stops, exec, another user, no descriptors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from tests.daemons import daemon_folder, eventually, running_daemon
from tests.states import until
from tests.system.commands import ROOT, clean_env
from tests.system.holders import holders
from tests.system.test_guard import CONFIG, queued


async def test_a_short_stop_costs_nothing(tmp_path: Path) -> None:
    """A debugger, a swap storm or a frozen container stops a process for a moment."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            token = await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            for _ in range(3):
                first.send(signal.SIGSTOP)
                await anyio.sleep(0.3 * CONFIG["session"]["ttl"])
                first.send(signal.SIGCONT)
                await anyio.sleep(0.5)
            (lease,) = (await daemon.get("/api/v1/leases")).json["leases"]
            assert (lease["task"], lease["token"], first.said("lost")) == ("first", token, None)
            first.leave()
            await second.is_in()
            assert first.process.wait(20) == 0


async def test_a_program_that_becomes_another_still_holds(tmp_path: Path) -> None:
    """The new program has the same pid and is still on the card, though it says nothing any more."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", "execs")
            await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            await anyio.sleep(1.5 * CONFIG["session"]["ttl"])
            (lease,) = (await daemon.get("/api/v1/leases")).json["leases"]
            assert (lease["task"], first.process.poll(), second.said("in")) == ("first", None, None)
            first.send(signal.SIGKILL)
            await second.is_in()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
async def test_a_holder_that_changes_its_user_is_still_followed() -> None:
    """Services begin as root and drop it; the guard must neither lose them nor lack the right to end them."""
    config = CONFIG | {"session": CONFIG["session"] | {"ttl": 25}}
    async with running_daemon(config=config) as daemon, daemon_folder() as folder:
        folder.chmod(0o777)  # pytest's own folders are closed to other users
        with holders(folder / "h", daemon) as start:
            start.folder.chmod(0o777)
            first = start.start("first", "drops", "{'lock_timeout': 6, 'heartbeat': 'manual'}")
            await first.is_in()
            second = start.start("second", "drops")
            await queued(daemon, 1)
            first.send(signal.SIGSTOP)
            await second.is_in(30)
            assert first.process.wait(30) in (-signal.SIGTERM, -signal.SIGKILL)
            third = start.start("third")
            await queued(daemon, 1)
            second.send(signal.SIGKILL)
            await third.is_in(20)  # its session would live for longer


STARVED = """
import os, resource, sys
from gpulockd import GpuLockError, gpu_lock
spare = int(sys.argv[1])
free = os.dup(0); os.close(free)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
def turn(max_wait_time):
    with gpu_lock("gpu_lock:0", max_wait_time=max_wait_time):
        return "held"
try:
    first = turn(5)
except (GpuLockError, OSError) as error:
    first = type(error).__name__
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print(first, turn(50), flush=True)
"""


async def test_a_client_without_descriptors_leaves_no_half_lock(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Whatever it could not open, it must not stand in the queue, and it must work when it can open again."""
    async with running_daemon(config=CONFIG) as daemon:
        env = clean_env(GPULOCKD_SOCKET=daemon.socket)
        said = []
        for spare in range(9):
            with anyio.fail_after(60):
                made = await anyio.run_process(
                    [sys.executable, "-c", STARVED, str(spare)], cwd=ROOT, env=env, check=False
                )
            assert made.returncode == 0, f"{spare} spare: {made.stderr[-2000:].decode()}"
            first, second = made.stdout.decode().split()
            assert second == "held", f"{spare} spare: {first} {second}"
            said.append(first)
        record_property("measured", f"{said.count('held')} of 9 limits sufficed")

        async def nobody() -> bool:
            leases, queue = await daemon.get("/api/v1/leases"), await daemon.get("/api/v1/queue")
            return not leases.json["leases"] and not queue.json["queue"]

        await eventually(nobody, 30)
        with holders(tmp_path / "h", daemon) as start:
            after = start.start("after")
            await after.is_in()
            after.leave()
            await until(lambda: after.said("out") is not None)
