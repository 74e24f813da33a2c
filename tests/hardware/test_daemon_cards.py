"""A whole daemon and cards that fail: holder, waiters and events, on simulated cards and on our stub library."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpulockd.hardware.simulated import occupy
from tests.daemons import CALM, Daemon, eventually, running_daemon
from tests.stub_nvml import StubCard, build

A, B = (f"GPU-{secrets.token_hex(4)}" for _ in range(2))  # a host has each card once, for all that run there

HOLDER = """
import asyncio, sys
from gpulockd import gpu_lock, LeaseLost
async def main():
    try:
        async with gpu_lock(sys.argv[1]) as lease:
            print("on", lease.gpu.uuid, flush=True)
            await asyncio.sleep(600)
    except LeaseLost as lost:
        print("lost", lost.reason, flush=True)
asyncio.run(main())
"""


def holder(daemon: Daemon, key: str) -> subprocess.Popen[str]:
    """A program that holds a gpu and says what becomes of its lease."""
    env = os.environ | {"GPULOCKD_SOCKET": daemon.socket}
    return subprocess.Popen([sys.executable, "-c", HOLDER, key], stdout=subprocess.PIPE, text=True, env=env)


def line(program: subprocess.Popen[str]) -> str:
    """Its next line."""
    assert program.stdout is not None
    return program.stdout.readline().strip()


async def state_of(daemon: Daemon, index: int) -> str:
    """A gpu's state."""
    said: Any = (await daemon.get("/api/v1/gpus")).json
    return str(next(gpu["state"] for gpu in said["gpus"] if gpu["index"] == index))


async def test_on_real_cards_a_lost_one_tells_its_holder_and_comes_back(tmp_path: Path) -> None:
    """From the driver's XID to the holder's exception, through everything that is between."""
    pytest.importorskip("pynvml")
    stub = build(tmp_path / "nvml")
    stub.set([StubCard(A), StubCard(B)])
    async with running_daemon(config=CALM, env=stub.env, simulate=0) as daemon:
        with holder(daemon, "gpu_lock:0") as program:
            try:
                assert line(program) == f"on {A}"
                began = time.monotonic()
                stub.set([StubCard(A, error=15), StubCard(B)])
                stub.happen(0, 79)
                assert line(program).startswith("lost")
                print(f"told after {time.monotonic() - began:.2f} s")
            finally:
                program.kill()

        async def is_out() -> bool:
            return await state_of(daemon, 0) == "lost"

        await eventually(is_out)
        assert await state_of(daemon, 1) != "lost"
        stub.set([StubCard(A), StubCard(B)])

        async def back() -> bool:
            return await state_of(daemon, 0) not in ("lost",)

        await eventually(back, within_s=60)
        with holder(daemon, "gpu_lock:0") as program:
            try:
                assert line(program) == f"on {A}"
            finally:
                program.kill()


async def test_a_stranger_on_a_card_makes_an_event() -> None:
    """People learn who is in the way, by name."""
    async with running_daemon(config=CALM) as daemon:
        events = await daemon.open("GET", "/api/v1/events", tcp=True)
        stranger = subprocess.Popen(["sleep", "600"])
        try:
            occupy(str(daemon.state / "simulated"), 1, 3000, pid=stranger.pid)
            while True:
                said = await events.line(within_s=30)
                assert said is not None
                if b"foreign_process_seen" in said and b"data" in said:
                    break
            assert b"sleep (pid %d" % stranger.pid in said and b"gpu_lock:1" in said
        finally:
            stranger.kill()
            stranger.wait()
