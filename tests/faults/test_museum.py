"""Bugs of the museum (`docs/museum.md`) that no test of their own part tries."""

from __future__ import annotations

import importlib.util
import sys

import anyio
import pytest

from gpulockd import gpu_lock
from gpulockd.client.guarded import hello_of
from tests.daemons import running_daemon
from tests.faults.scene import CONFIG
from tests.pools import client_here, offer, simulated
from tests.servers import Server
from tests.system.commands import ROOT, clean_env

UNDER_UVLOOP = """
import asyncio, uvloop
from gpulockd import gpu_lock
async def main():
    async with gpu_lock("gpu_lock:0", max_wait_time=20) as lease:
        vouched = lease._entry.vouched
        await asyncio.sleep(0.1)
    print("let in" if vouched else "not asked")
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


async def test_what_is_being_given_back_is_not_named_to_a_guard_that_comes(valkey_server: Server, pool: str) -> None:
    """A guard that was away took it for held, and its gpu was quarantined until the process ended."""
    offer(valkey_server, pool, simulated(2))
    with client_here(valkey_server.url, pool):
        async with gpu_lock("gpu_lock:0") as stays, gpu_lock("gpu_lock:1") as ends:
            ends._entry.state = "ending"
            hello = hello_of(stays._line.session)
            ends._entry.state = "held"
            assert [words["id"] for words in hello["held"]] == [stays.id]
            assert ends.id not in hello["known"]


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
async def test_a_program_under_uvloop_is_let_in() -> None:
    """Its transports are no asyncio.Transport by inheritance; who relied on that let nobody of it in."""
    async with running_daemon(config=CONFIG, simulate=1) as daemon:
        env = clean_env(GPULOCKD_SOCKET=daemon.socket)
        with anyio.fail_after(60):
            made = await anyio.run_process([sys.executable, "-c", UNDER_UVLOOP], cwd=ROOT, env=env, check=False)
        assert made.stdout.decode().split("\n")[0] == "let in", made.stderr[-2000:].decode()
