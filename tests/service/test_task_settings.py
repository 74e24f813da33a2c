"""What the configuration says of one task, on a real daemon."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from gpulockd import GpuLockTimeout, LeaseLost, gpu_lock
from gpulockd.client import process
from tests.daemons import STEADY, running_daemon
from tests.pools import client_here


async def waited_in_vain(task: str) -> float:
    """How long that task waited for a card that another holds (in seconds)."""
    with pytest.raises(GpuLockTimeout) as busy:
        async with gpu_lock("gpu_lock:0", task=task, nested="wait"):
            pass
    return busy.value.waited_s


async def test_a_task_waits_and_is_limited_as_its_own_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long task must not make the limits of all tasks long, nor one impatient task make all impatient."""
    tasks = {"shop.hasty": {"max_wait_time": "300ms"}, "shop.short": {"hard_timeout": "500ms"}}
    config: dict[str, Any] = STEADY | {
        "tasks": tasks,
        "gpu_lock": {"max_wait_time": "1h"},
        "gpu_lock_monitor": {"monitor_interval": 0.2, "cleanup": {"retry_delay": 0.2}},
        "settle": {"grace": 60},  # who is slow to leave is ended, and that is the process of the tests
    }
    async with running_daemon(config=config) as daemon:
        with client_here(daemon.store_url, daemon.pool):
            async with gpu_lock("gpu_lock:0", task="holds"):
                assert await asyncio.create_task(waited_in_vain("shop.hasty")) < 60
                monkeypatch.setenv("GPULOCKD_TASKS", '{"shop.other": {"max_wait_time": 0.1}}')
                assert await asyncio.create_task(waited_in_vain("shop.other")) < 60
            with pytest.raises(LeaseLost):
                async with gpu_lock("gpu_lock:1", task="shop.short"):
                    await anyio.sleep(60)
            process.say_goodbye()
