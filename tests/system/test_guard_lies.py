"""Another user at the guard's socket: whatever he says, he ends nobody and keeps nobody out for long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.daemons import Daemon, daemon_folder, running_daemon
from tests.states import until
from tests.system.commands import ask
from tests.system.holders import holders
from tests.system.test_guard import CONFIG, queued
from tests.system.test_guard_broken import program

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")

NOBODY_SAYS = """
import json, os, socket, sys, time
os.setresuid(65534, 65534, 65534)
with socket.socket(socket.AF_UNIX) as door:
    door.connect(sys.argv[1])
    heard = door.makefile("rb")
    for line in sys.argv[2:]:
        door.sendall(line.encode() + b"\\n")
        while json.loads(line)["verb"] != "leave" and b'"alive"' in (answer := heard.readline()):
            pass
    print(answer.decode(), flush=True)
    time.sleep(60)
"""

TAKES_ONE = """
from gpulockd import gpu_lock
with gpu_lock("gpu_lock:1", max_wait_time=20):
    pass
"""

FREE = ["gpu_lock:free"]


def words(id: str, token: int, gpus: list[str], **more: Any) -> dict[str, Any]:
    return {"id": id, "token": token, "gpus": gpus} | more


def hello(lease: dict[str, Any]) -> str:
    return json.dumps({"verb": "hello", "session": "liar", "held": [lease], "as_of": 1})


def admit(lease: dict[str, Any]) -> str:
    return json.dumps({"verb": "admit", "session": "liar", "lease": lease})


def leave(id: str, token: int) -> str:
    return json.dumps({"verb": "leave", "lease": id, "token": token})


@contextmanager
def nobody_says(daemon: Daemon, *lines: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of another user that has said this, has heard the last answer, and stays."""
    for folder in (daemon.runtime.parent, daemon.runtime):
        folder.chmod(0o755)  # as the units make it
    door = daemon.runtime / "guard.sock"
    door.chmod(0o666)
    with program(daemon, NOBODY_SAYS, str(door), *lines) as liar:
        assert liar.stdout is not None
        assert liar.stdout.readline(), "it could not speak"
        yield liar


async def test_nobody_ends_a_run_or_takes_it_from_the_fence(tmp_path: Path) -> None:
    """A made-up lease was joined under a holder's id, or held under it: its run was ended, or forgotten."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", "forks")
            token = await first.is_in()
            (lease,) = ask(daemon, "leases")
            joins = [hello(words("a" * 32, 7, FREE)), admit(words(lease["id"], 7, FREE, of="a" * 32))]
            with nobody_says(daemon, *joins) as liar:
                liar.kill()
            taken = words(lease["id"], token + 1, FREE)
            with nobody_says(daemon, hello(taken), leave(lease["id"], token + 1)):
                await anyio.sleep(2)
                assert first.process.poll() is None
                second = start.start("second")
                await queued(daemon, 1)
                first.send(signal.SIGKILL)
                await second.is_in(60)  # whether its child was on the card still, the flock tells


async def test_tokens_that_nobody_gave_keep_nobody_out(tmp_path: Path) -> None:
    """Two lines stopped the pool for good, over restarts of the daemon too."""
    async with daemon_folder() as base:
        async with running_daemon(config=CONFIG, base=base) as daemon:
            far, near = (1 << 53) - 1, round(time.time() * 1000) + 9 * 10**8
            said = [hello(words("f" * 32, far, ["gpu_lock:0"])), leave("f" * 32, far)]
            said += [admit(words("e" * 32, near, ["gpu_lock:0"])), leave("e" * 32, near)]
            with nobody_says(daemon, *said), holders(tmp_path / "h", daemon) as start:
                one = start.start("one")
                assert await one.is_in() < near
                one.leave()
                await one.is_out()
            await daemon.kill()
        async with running_daemon(config=CONFIG, base=base) as daemon:
            with holders(tmp_path / "again", daemon) as start:
                assert await start.start("two").is_in() < near


async def test_a_lie_under_a_waiters_id_takes_neither_a_gpu_nor_its_place(tmp_path: Path) -> None:
    """It stood on a free gpu for as long as the liar liked, and its waiter went to the end of the queue."""
    async with running_daemon(config=CONFIG, simulate=2) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            token = await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            (ticket,) = ask(daemon, "queue")
            third = start.start("third")
            await queued(daemon, 2)
            with nobody_says(daemon, admit(words(ticket["id"], token + 5, ["gpu_lock:1"]))):
                with program(daemon, TAKES_ONE) as other:
                    await until(lambda: other.poll() is not None)
                    assert other.returncode == 0
                first.leave()
                await second.is_in()
                assert third.said("in") is None
                second.leave()
                await third.is_in()
