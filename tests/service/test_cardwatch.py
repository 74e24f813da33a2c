"""The watch over cards, on a real ledger with real holders: what fails leaves the pool, and comes back by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from gpulockd import GpuLockTimeout, LeaseLost, gpu_lock
from gpulockd.client.whoami import boot_id
from gpulockd.daemon.cardlooks import CardLooks
from gpulockd.daemon.cardwatch import CardWatch
from gpulockd.daemon.faults import Faults
from gpulockd.daemon.judge_cards import Policy
from gpulockd.daemon.strangers import Strangers
from gpulockd.hardware.processes.identity import identify
from gpulockd.hardware.simulated import SimulatedCards, occupy, vacate
from gpulockd.hardware.troubles import CardLost
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from tests.pools import client_here, offer, snapshot
from tests.servers import Server
from tests.states import until

LOOK_S = 0.05
HANGS_AFTER_S = 0.3
"""What a card may take for an answer where one is to hang; elsewhere a slow machine is no card that hangs."""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    """A program of this host that knows nothing of us."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


class Watched:
    """A pool with two simulated cards that are watched."""

    def __init__(self, server: Server, pool: str, folder: Path, watch: CardWatch, told: list[tuple[str, str]]) -> None:
        self.server = server
        self.pool = pool
        self.folder = str(folder)
        self.watch = watch
        self.told = told
        """The strangers that were told of: (gpu, who)."""

    def state(self, index: int = 0) -> str:
        """A gpu's state in the ledger."""
        return snapshot(self.server, self.pool).gpus[index].state

    def break_(self, index: int, name: str, text: str = "") -> Path:
        """Let a card fail as the file's name says."""
        path = Path(self.folder) / f"gpu{index}" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    async def looks(self, more: int = 4) -> None:
        """Let the cards be looked at some more times."""
        enough = self.watch.looks.taken + more
        await until(lambda: self.watch.looks.taken >= enough)

    async def report(self, index: int, state: str) -> None:
        """Say how a gpu is, as a command does."""
        async with store_of(self.server) as store:
            call = verbs.report(
                PoolKeys(self.pool), session="", gpu=f"gpu_lock:{index}", state=state, reason="operator"
            )
            await store.ask(call)


@asynccontextmanager
async def store_of(server: Server) -> AsyncIterator[Store]:
    """A command connection."""
    store = Store(server.url, deadline_s=10)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def watched(
    server: Server,
    pool: str,
    folder: Path,
    *,
    policy: Policy = "report",
    faults: Faults | None = None,
    deadline_s: float = 60.0,
    **how: Any,
) -> AsyncIterator[Watched]:
    """Offer two simulated cards, watch them, and let this process be a client."""
    cards = SimulatedCards(pool, 2, folder=str(folder), deadline_s=deadline_s)
    gpus = await cards.list()
    offer(server, pool, list(gpus))
    told: list[tuple[str, str]] = []

    async def tell(gpu: str, who: str) -> None:
        told.append((gpu, who))

    async with store_of(server) as store, closing_cards(cards), anyio.create_task_group() as tasks:
        watch = CardWatch(
            CardLooks(cards, lambda: gpus),
            PoolKeys(pool),
            store.ask,
            Strangers(boot_id()),
            faults=faults,
            policy=lambda: policy,
            tell=tell,
            look_s=LOOK_S,
            **how,
        )
        await tasks.start(watch.run)
        with client_here(server.url, pool):
            yield Watched(server, pool, folder, watch, told)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def closing_cards(cards: SimulatedCards) -> AsyncIterator[None]:
    """Let the threads of cards end with the block."""
    try:
        yield
    finally:
        cards.close()


async def test_a_card_that_is_lost_tells_its_holder_and_the_next_gets_another(
    server: Server, pool: str, tmp_path: Path
) -> None:
    """Work on a dead card is over; nobody else may begin on it, and those who wait go elsewhere."""
    async with watched(server, pool, tmp_path) as here:
        lease = await gpu_lock("gpu_lock:0").acquire()
        lost = here.break_(0, "lost")
        with anyio.fail_after(30):
            await lease.lost.wait()
        await until(lambda: here.state(0) == "lost")
        assert here.watch.fault_of("gpu_lock:0") == "a GPU has fallen off the bus"
        with pytest.raises(LeaseLost):
            await lease.release()
        async with gpu_lock() as other:
            assert other.gpu.index == 1
            with pytest.raises(GpuLockTimeout):
                async with gpu_lock("gpu_lock:0", max_wait_time=0.3, nested="wait"):
                    pass
        lost.unlink()
        await until(lambda: here.state(0) == "ready")
        async with gpu_lock("gpu_lock:0"):
            pass


async def test_a_waiter_gets_the_card_when_it_is_back(server: Server, pool: str, tmp_path: Path) -> None:
    """The queue of a lost card stands; nobody has to ask again."""
    async with watched(server, pool, tmp_path) as here:
        lost = here.break_(0, "lost")
        await until(lambda: here.state(0) == "lost")
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                async with gpu_lock("gpu_lock:0") as lease:
                    assert lease.gpu.index == 0

            tasks.start_soon(wait)
            await until(lambda: snapshot(server, pool).queued == 1)
            lost.unlink()


async def test_an_xid_that_breaks_the_card_takes_it_out_and_one_of_a_program_does_not(
    server: Server, pool: str, tmp_path: Path
) -> None:
    """XID 31 is a bug of the holder's; XID 79 is the end of the card."""
    async with watched(server, pool, tmp_path) as here:
        with pytest.raises(LeaseLost):
            async with gpu_lock("gpu_lock:0") as lease:
                xid = here.break_(0, "xid", "31\n13\n")
                await until(lambda: not xid.exists())
                await here.looks()
                assert here.state(0) == "ready"
                assert not lease.lost.is_set()
                needs = here.break_(0, "recovery", "gpu_reset")
                await until(lambda: here.state(0) == "lost")
                await until(lease.lost.is_set)
        needs.unlink()
        await until(lambda: here.state(0) == "ready")
        here.break_(1, "recovery", "gpu_reset")
        here.break_(1, "xid", "48\n")
        await until(lambda: here.watch.fault_of("gpu_lock:1").startswith("XID 48"))
        assert here.state(0) == "ready"


async def test_a_fault_outlives_the_daemon_but_not_the_boot(server: Server, pool: str, tmp_path: Path) -> None:
    """A restart of the daemon mends no card; a reboot resets it."""
    path = str(tmp_path / "faults.json")
    needs = tmp_path / "gpu0" / "recovery"
    needs.parent.mkdir()
    needs.write_text("gpu_reset")
    async with watched(server, pool, tmp_path, faults=Faults(path, "boot-1")) as here:
        here.break_(0, "xid", "119\n")
        await until(lambda: here.state(0) == "lost" and "XID 119" in here.watch.fault_of("gpu_lock:0"))
        await until((tmp_path / "faults.json").exists)
    again, rebooted = Faults(path, "boot-1"), Faults(path, "boot-2")
    await again.read()
    await rebooted.read()
    assert (list(again.xids.values()), rebooted.xids) == ([119], {})
    async with watched(server, pool, tmp_path, faults=again) as here:
        assert "XID 119" in here.watch.fault_of("gpu_lock:0")
        assert here.state(0) == "lost"
        needs.unlink()
        await until(lambda: here.state(0) == "ready" and not again.xids)


async def test_a_card_that_hangs_keeps_its_holder_and_takes_nobody_new(
    server: Server, pool: str, tmp_path: Path
) -> None:
    """It may be a long moment of its driver: whoever is on it goes on, and the other card is watched all the while."""
    async with watched(server, pool, tmp_path, deadline_s=HANGS_AFTER_S) as here:
        async with gpu_lock("gpu_lock:0") as lease:
            hang = here.break_(0, "hang")
            await until(lambda: here.state(0) == "lost")
            here.break_(1, "recovery", "gpu_reset")
            await until(lambda: here.state(1) == "lost")
            assert not lease.lost.is_set()
        hang.unlink()
        await until(lambda: here.state(0) == "ready")


async def test_a_drained_card_that_fails_and_recovers_is_drained_still(
    server: Server, pool: str, tmp_path: Path
) -> None:
    """Somebody wanted it drained, for a reason that no reading knows."""
    async with watched(server, pool, tmp_path) as here:
        await here.report(0, "drained")
        lost = here.break_(0, "lost")
        await until(lambda: bool(here.watch.fault_of("gpu_lock:0")))
        lost.unlink()
        await until(lambda: not here.watch.fault_of("gpu_lock:0"))
        await here.looks()
        assert here.state(0) == "drained"


def uuid_of(here: Watched, index: int = 0) -> str:
    """The UUID of a watched card."""
    return str(snapshot(here.server, here.pool).gpus[index].gpu.uuid)


async def test_without_recovery_a_failure_is_seen_and_nobody_loses_a_lease(
    server: Server, pool: str, tmp_path: Path
) -> None:
    """`auto_recovery: false` means detect and tell."""
    async with watched(server, pool, tmp_path, recovers=lambda: False) as here:
        async with gpu_lock("gpu_lock:0") as lease:
            here.break_(0, "lost")
            await until(lambda: here.state(0) == "lost")
            await here.looks()
            assert not lease.lost.is_set()


async def test_a_holder_and_its_children_are_no_strangers_and_another_program_is(
    server: Server, pool: str, tmp_path: Path, program: subprocess.Popen[bytes]
) -> None:
    """A false alarm for each worker would teach people to look away; a game on the card is what they must see."""
    async with watched(server, pool, tmp_path) as here:
        # Both are on the card: this process holds it and is the other's parent.
        async with gpu_lock("gpu_lock:0"):
            occupy(here.folder, 0, 100)
            occupy(here.folder, 0, 200, pid=program.pid)
            await until(lambda: len(here.watch.looks.pids_on("gpu_lock:0")) == 2)
            await here.looks()
            assert here.told == []
        # A worker between two tasks keeps its context.
        await here.looks()
        assert here.told == []
        stranger = await grandchild()
        try:
            occupy(here.folder, 1, 3000, pid=stranger)
            await until(lambda: bool(here.told))
            assert here.told[0][0] == "gpu_lock:1"
            assert f"pid {stranger}" in here.told[0][1]
            assert here.told[0][1].endswith("3000 MiB")
            assert here.state(1) == "ready"
            assert [one.process.pid for one in here.watch.strangers_on("gpu_lock:1")] == [stranger]
        finally:
            os.kill(stranger, 9)
        await until(lambda: not here.watch.strangers_on("gpu_lock:1"))
        assert len(here.told) == 1
        vacate(here.folder, 0)


async def grandchild() -> int:
    """Start a program that is not our child any more."""
    code = "import subprocess as s; print(s.Popen(['sleep', '600'], stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
    return int((await anyio.run_process([sys.executable, "-c", code])).stdout)


async def test_where_strangers_are_waited_for_a_card_is_not_given_while_one_is_there(
    server: Server, pool: str, tmp_path: Path
) -> None:
    """`gpus.foreign: wait` is for hosts where not everybody asks first."""
    async with watched(server, pool, tmp_path, policy="wait") as here:
        stranger = await grandchild()
        try:
            occupy(here.folder, 0, 3000, pid=stranger)
            await until(lambda: here.state(0) == "quarantined")
            assert f"pid {stranger}" in await here.watch.left_on("gpu_lock:0", frozenset())
            async with gpu_lock() as lease:
                assert lease.gpu.index == 1
        finally:
            os.kill(stranger, 9)
        await until(lambda: here.state(0) == "ready")
        assert await here.watch.left_on("gpu_lock:0", frozenset()) == ""


async def test_memory_that_nobody_visible_uses_is_told_of_on_a_card_without_holder(
    server: Server, pool: str, tmp_path: Path
) -> None:
    """A daemon in a container sees no pids; it must not call such a card free without a word."""
    async with watched(server, pool, tmp_path) as here:
        async with gpu_lock("gpu_lock:1"):
            here.break_(1, "hidden", "9000")  # its holder's own
            here.break_(0, "hidden", "8000")
            await until(lambda: bool(here.told))
            await here.looks()
            assert [gpu for gpu, _ in here.told] == ["gpu_lock:0"]
            assert "cannot see" in here.told[0][1]
            assert "8000 MiB" in here.told[0][1]
            (Path(here.folder) / "gpu1" / "hidden").unlink()


async def test_what_is_left_of_a_run_is_named_until_it_is_gone(
    server: Server, pool: str, tmp_path: Path, program: subprocess.Popen[bytes]
) -> None:
    """A lost lease's gpu settles when its processes are off the card, not when somebody says so."""
    async with watched(server, pool, tmp_path) as here:
        run = identify(program.pid)
        assert run is not None
        looks, uuid = here.watch.looks, uuid_of(here)
        occupy(here.folder, 0, 4000, pid=program.pid)
        assert await here.watch.left_on("gpu_lock:0", frozenset({run})) == f"pid {program.pid}"
        assert await looks.free_mib(uuid) == 24576 - 4000
        assert [process.pid for process in await looks.occupants(uuid)] == [program.pid]
        program.kill()
        program.wait()
        assert await here.watch.left_on("gpu_lock:0", frozenset({run})) == ""
        here.break_(0, "lost")
        assert "fallen off" in await here.watch.left_on("gpu_lock:0", frozenset({run}))
        with pytest.raises(CardLost):
            await looks.occupants(uuid)


async def test_cards_that_rest_cost_the_store_nothing(server: Server, pool: str, tmp_path: Path) -> None:
    """A host with eight idle cards looks at them every few seconds, all day."""
    async with watched(server, pool, tmp_path) as here:
        await until(lambda: bool(here.watch.looks.history))
        await here.looks()
        asked = 0
        ask = here.watch._ask

        async def counted(call: Any) -> Any:
            nonlocal asked
            asked += 1
            return await ask(call)

        here.watch._ask = counted
        await here.looks(10)
        assert asked == 0
