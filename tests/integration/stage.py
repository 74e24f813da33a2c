"""The stage of the performance tests: private hosts under the configurations that a test applies.

Its helpers have the names that GPU_LOCK_CONFIG_001 and its tests use (B-109, B-601 to B-603).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from gpulockd import BlockingLease, GpuLockTimeout, gpu_lock
from gpulockd.client import process
from gpulockd.settings import Tree
from gpulockd.trial.chosen import of_change
from gpulockd.trial.load import Load, Start, of_names
from gpulockd.trial.measured import Measured
from gpulockd.trial.running import WORKERS, Site, open_site, take_turns
from gpulockd.trial.verdict import Mode, cpu_growth

SEED = 20251224
GPUS = 8
SAMPLE_S = 1.0

OPTIMIZED = {"poll_interval": 0.5, "max_wait_time": 300, "lock_timeout": 600, "max_poll_interval": 5}
"""The optimised configuration as the requirement gives it (B-104)."""


class Stage:
    """The host before any change, the host under the applied configuration, and what was measured on them."""

    def __init__(self, portal: BlockingPortal, mode: Mode, live: Tree | None = None) -> None:
        """:param live: what is live before a configuration is applied; None: the defaults"""
        self._portal = portal
        self._mode = mode
        self._live = live
        self._stack = AsyncExitStack()
        self._sites: dict[str, Site] = {}
        self._applied = ""
        self._concurrent: list[Start] = []

    def close(self) -> None:
        """End all hosts."""
        self._portal.call(self._stack.aclose)

    @property
    def site(self) -> Site:
        """The host under the applied configuration."""
        return self._sites[self._applied]

    def apply_config(self, config: Tree) -> None:
        """Go by these keys of `gpu_lock`; those that are left out are as in the live configuration."""
        self._applied = self._open(config)

    def run_benchmark_tasks(self, names: Sequence[str], *, rounds: int, gpus: int) -> tuple[Measured, Measured]:
        """Run tasks of these names before the change and under it, in turn; return what was measured."""
        before = self._open({})
        load = Load(tasks=of_names(list(names)), gpus=gpus, rounds=rounds)
        self._portal.call(self._take_turns, self._sites[before], self.site, load)
        return self._sites[before].measured(), self.site.measured()

    def simulate_gpu_task(self) -> Start:
        """Add a task that asks for a GPU again and again while `monitor_redis_cpu` looks."""
        number = len(self._concurrent)
        start = Start(at_s=0.0, key=f"gpu_lock:{number % GPUS}", task=f"task-{number}", hold_s=0.05)
        self._concurrent.append(start)
        return start

    def monitor_redis_cpu(self, duration: float) -> list[float]:
        """Run the simulated tasks at the same time for `duration` seconds; the store's CPU, each second, in percent."""
        starts, self._concurrent = self._concurrent, []
        return self._portal.call(self._sample, starts, duration)

    def _open(self, config: Tree) -> str:
        name = repr(sorted(config.items()))
        if name not in self._sites:
            tree = of_change(name, {"gpu_lock": config}, self._live).tree
            self._sites[name] = self._portal.call(self._open_site, name, tree)
        return name

    async def _open_site(self, name: str, tree: Tree) -> Site:
        # Where programs are woken, the test itself is the only one.
        workers = WORKERS if self._mode == "polling" else 0
        return await open_site(self._stack, name, tree, gpus=GPUS, mode=self._mode, workers=workers)

    async def _take_turns(self, before: Site, after: Site, load: Load) -> None:
        await take_turns(before, after, load=load, mode=self._mode, seed=SEED)

    async def _sample(self, starts: Sequence[Start], duration: float) -> list[float]:
        site, loop, samples = self.site, asyncio.get_running_loop(), []
        await site.tell(starts, for_s=duration)
        end_s = loop.time() + duration
        while loop.time() < end_s:
            began_s, cpu_s = loop.time(), site.host.store_cpu_s()
            await asyncio.sleep(SAMPLE_S)
            samples.append(100.0 * (site.host.store_cpu_s() - cpu_s) / (loop.time() - began_s))
        await site.hear(duration)
        return samples


@contextlib.contextmanager
def staged(mode: Mode, live: Tree | None = None) -> Iterator[Stage]:
    """A stage whose hosts end with the block."""
    with start_blocking_portal() as portal:
        stage = Stage(portal, mode, live)
        try:
            yield stage
        finally:
            stage.close()


def results_of(before: Measured, after: Measured) -> dict[str, float]:
    """What was measured, under the names of the requirement."""
    return {
        "success_rate": after.success_rate,
        "avg_wait_time": after.avg_wait_time,
        "redis_cpu_increase": cpu_growth(before, after),
        "timeout_rate": after.timeout_rate,
    }


class LockManager:
    """The lock manager of the documents, which asks this process's own client."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], BlockingLease] = {}

    def acquire_lock_with_smart_polling(self, task_name: str, lock_key: str, config: dict[str, Any]) -> bool:
        """Wait for the lock as `config` says, and say whether it was got."""
        lock = gpu_lock(lock_key, task=task_name, nested="wait", **config)
        try:
            lease = lock.acquire_blocking()
        except GpuLockTimeout:
            return False
        assert lease is not None
        self._held[task_name, lock_key] = lease
        return True

    def release_lock(self, task_name: str, lock_key: str) -> bool:
        """Give the lock back."""
        lease = self._held.pop((task_name, lock_key), None)
        if lease is None:
            return False
        lease.release()
        return True


def published() -> dict[str, Any]:
    """The block `gpu_lock` that this process goes by, once it has asked for a lock."""
    session = process.known_session(None)
    assert session is not None
    block: dict[str, Any] = session.defaults["gpu_lock"]
    return block


@contextlib.contextmanager
def client_of(stage: Stage) -> Iterator[LockManager]:
    """Let this process be a program of the stage's host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPULOCKD_SOCKET", stage.site.host.socket)
        try:
            yield LockManager()
        finally:
            process.say_goodbye()
