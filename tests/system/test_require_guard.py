"""`gpus.require_guard`: where it is on, nobody begins while the pool has no guard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import daemon_folder, running_daemon
from tests.states import until
from tests.system.commands import ROOT, clean_env
from tests.system.holders import holders
from tests.system.test_guard import CONFIG

REQUIRED: dict[str, Any] = CONFIG | {"gpus": {"require_guard": True}}
CURE = "start `gpulockd serve`"


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_a_program_waits_while_the_guard_is_away_and_begins_when_it_is_back(tmp_path: Path, mode: str) -> None:
    """Without a fence the next one would meet on the card what a dead one has left."""
    async with daemon_folder() as base:
        async with running_daemon(config=REQUIRED, base=base) as daemon:
            with holders(tmp_path / "before", daemon) as start:
                first = start.start("first", mode)
                await first.is_in()
                first.leave()
                await first.is_out()
            assert await daemon.stop() == 0
            with holders(tmp_path / "h", daemon) as start:
                waiting = start.start("waiting", mode)
                await until(lambda: CURE in waiting.log and "require_guard" in waiting.log)
                assert waiting.said("in") is None
                async with running_daemon(config=REQUIRED, base=base):
                    await waiting.is_in()
                    waiting.leave()
                    await waiting.is_out()
                    assert waiting.said("lost") is None


async def test_the_wait_limit_ends_the_wait_for_a_guard_and_its_error_names_the_cure(tmp_path: Path) -> None:
    """The GPU is free, so who is told only 'not free' would search in the wrong place."""
    async with daemon_folder() as base:
        async with running_daemon(config=REQUIRED, base=base) as daemon:
            assert await daemon.stop() == 0
        with holders(tmp_path / "h", daemon) as start:
            limited = start.start("limited", wish="{'max_wait_time': 3}")
            impatient = start.start("impatient", wish="{'max_wait_time': 0}")
            for refused in (limited, impatient):
                await refused.is_out()
                assert refused.said("in") is None
                said = refused.said("lost") or ""
                assert said.startswith("GpuLockTimeout")
            assert any(CURE in (refused.said("lost") or "") for refused in (limited, impatient))
        _nothing_is_left(base)


async def test_without_the_setting_nobody_waits_for_a_guard(tmp_path: Path) -> None:
    """The default: a daemon that is stopped makes waits longer, never endless."""
    async with daemon_folder() as base:
        async with running_daemon(config=CONFIG, base=base) as daemon:
            assert await daemon.stop() == 0
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            await first.is_in()
            first.leave()
            await first.is_out()


async def test_the_wait_limit_ends_the_wait_for_a_guard_that_was_killed(tmp_path: Path) -> None:
    """The ledger still counts on it: who gives up must not go round it, and must not wait for ever."""
    patient = CONFIG | {"session": CONFIG["session"] | {"ttl": 60}}
    async with daemon_folder() as base:
        async with running_daemon(config=patient, base=base) as daemon:
            await daemon.kill()
        with holders(tmp_path / "h", daemon) as start:
            limited = start.start("limited", wish="{'max_wait_time': 3}")
            await limited.is_out()
            assert limited.said("in") is None
            assert "its guard cannot be reached" in (limited.said("lost") or "")


def _nothing_is_left(base: Path) -> None:
    """A wait that was given up holds nothing: the next one is granted without a wait, and only the guard is missed."""
    program = (
        "from gpulockd import GpuLockTimeout, gpu_lock\n"
        "try:\n    gpu_lock(max_wait_time=0).acquire_blocking()\n"
        "except GpuLockTimeout as missed:\n    print(missed.message)\n"
    )
    env = clean_env(GPULOCKD_SOCKET=str(base / "run/api.sock"))
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert CURE in done.stdout and "held by" not in done.stdout
