"""What an orderly stop of the daemon says of those who still hold, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemons import running_daemon
from tests.states import until
from tests.system.commands import call
from tests.system.holders import holders

SHORT = {"session": {"ttl": 5.0, "keepalive": 0.5, "rpc_deadline": 1.0, "margin": 0.1}}
"""A holder that is cut off stops believing after three and a half seconds."""


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_a_stop_with_its_store_names_the_holders_who_then_lose_their_gpus(tmp_path: Path, mode: str) -> None:
    """A holder cannot know its lease without the store: whoever stops it must be told under whom."""
    async with running_daemon("--stop-store", config=SHORT) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", mode)
            await first.is_in()
            await daemon.stop()
            assert "daemon.stops_under_holders" in daemon.log
            assert f"pid {first.process.pid}" in daemon.log
            await until(lambda: first.said("lost"))
            if mode == "async":
                assert "cut off from Redis: " in (first.said("lost") or ""), "not by a stop of the process"
            late = start.start("late")
            await until(lambda: late.said("lost"))
            assert "gpulockd serve" in (late.said("lost") or "")


async def test_a_stop_without_its_store_says_who_goes_on(tmp_path: Path) -> None:
    """The same line would be a false alarm: they keep what they have."""
    async with running_daemon() as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            await first.is_in()
            assert call(daemon, "acquire", "-q", "--ttl", "1m", "--task", "step").returncode == 0
            await daemon.stop()
            assert "daemon.holders_go_on" in daemon.log
            assert "gpu_lock:1: step, since" in daemon.log, "a hold for a time has no process"
            assert "daemon.stops_under_holders" not in daemon.log
            first.leave()
            await first.is_out()
            assert first.said("lost") is None
