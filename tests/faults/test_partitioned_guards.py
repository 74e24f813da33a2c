"""Rows of the matrix about lines, on real ones: programs and daemon are each on a machine of their own.

The guard's socket is a path, so it reaches over networks as it does into containers; what is cut is the way to the
store.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import msgspec
import pytest

from gpulockd.settings import SessionBlock
from tests.daemons import running_daemon
from tests.faults.partitions import Network, started
from tests.faults.scene import Scene, asks_again, hands_over, holds, noted, standing
from tests.pools import snapshot
from tests.servers import Server
from tests.states import until
from tests.system.commands import ROOT, clean_env
from tests.system.workers_started import Crew

Record = Callable[[str, object], None]

STEADY = SessionBlock(ttl=5.0, keepalive=0.4, rpc_deadline=0.4, margin=0.2, claim_window=0.5)
"""A daemon that stands still for three seconds still keeps its holders, and is trusted by them (in seconds)."""
ENDED_S = STEADY.ttl + STEADY.keepalive + STEADY.rpc_deadline + 0.2
"""A session that nobody keeps has ended by then (in seconds)."""

PATIENT = {"session": msgspec.to_builtins(STEADY), "settle": {"timeout": 2, "grace": 20}}
"""Who is told of a loss has ten seconds to note it before it is signalled. A gpu that the ledger takes for lost goes on
two seconds after its guard is given up."""

AT_LEAST_S = 1.2
"""Long enough for whoever may begin to do so (in seconds)."""


@pytest.fixture(scope="module")
def stage(machines: Network, far_store: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A daemon on the third machine."""

    @contextlib.asynccontextmanager
    async def made() -> AsyncIterator[Scene]:
        inside, folder = machines.hosts[2].inside, tmp_path_factory.mktemp("guarded")
        async with running_daemon("--redis", machines.url, config=PATIENT, simulate=1, prefix=inside) as daemon:
            await until(lambda: not snapshot(far_store, daemon.pool).frozen_ms)
            with Crew(folder, machines.url, daemon.pool, STEADY, GPULOCKD_SOCKET=daemon.socket) as crew:
                yield Scene(far_store, daemon, crew)

    with standing(made()) as stage:
        yield stage


@pytest.fixture
async def here(stage: Scene) -> Scene:
    """The same, guarded; what is noted counts from now on."""
    await until(lambda: stage.picture.guarded)
    stage.begin()
    return stage


async def test_a_guarded_holder_that_is_cut_off_goes_on(here: Scene, network: Network) -> None:
    """Its guard knows that it lives, and keeps its session: nobody is let in, for as long as it takes."""
    cut, clear, _ = network.hosts
    (holder,), (waiter,) = started(here.crew, cut, "cut"), started(here.crew, clear, "waiter")
    token = await holds(holder)
    await here.stands_in_line(waiter)
    cut.cut_off()
    await anyio.sleep(ENDED_S)
    assert not waiter.find("enter")
    assert [lease.token for lease in here.picture.leases] == [token]
    await hands_over(holder, waiter)  # the guard has heard it leave, and says so to the ledger
    cut.restored()
    await noted(holder, "left")
    await here.ends(waiter)


async def test_a_guard_that_is_cut_off_is_asked_and_limits_act_when_it_is_back(
    here: Scene, network: Network, record_property: Record
) -> None:
    """The ledger gives up its guard after a session; who is on the card believes in it and whoever waits asks it, so
    the gpu goes from hand to hand in order. A limit that passes meanwhile acts as soon as the line is back."""
    _, clear, of_daemon = network.hosts
    (holder,), (waiter,) = started(here.crew, clear, "keeps"), started(here.crew, clear, "limited")
    await holds(holder)
    await here.stands_in_line(waiter, warning=0.5, soft_timeout=1, hard_timeout=1.5)
    of_daemon.cut_off()
    await until(lambda: not here.picture.guarded)
    assert not here.notes("lost", "refused", "OVERLAP")
    assert not waiter.find("enter")
    await hands_over(holder, waiter)
    await anyio.sleep(2)
    assert not waiter.find("lost")
    of_daemon.restored()
    began_s = time.monotonic()
    await noted(waiter, "lost")
    record_property("measured", f"limits acted {time.monotonic() - began_s:.1f} s after the line was back")
    await until(lambda: not here.picture.leases)
    assert not here.notes("OVERLAP")


async def test_nobody_begins_beside_a_holder_whose_guard_is_cut_off_with_it(here: Scene, network: Network) -> None:
    """To the ledger both are dead, and the pool has no guard: a program that comes now and reaches the store gets the
    gpu from it, and must find the guard by itself; so must what the daemon does for others when it is back."""
    cut, clear, of_daemon = network.hosts
    (holder,), (fresh,) = started(here.crew, cut, "believes"), started(here.crew, clear, "fresh")
    await noted(fresh, "ready")
    await holds(holder)
    cut.cut_off()
    of_daemon.cut_off()
    await until(lambda: not here.picture.leases and not here.picture.guarded)
    fresh.tell("ask", "0")
    again = asks_again(fresh, "0")
    await until(lambda: again() or here.picture.leases)
    await anyio.sleep(AT_LEAST_S)
    assert not fresh.find("enter")
    assert not here.notes("lost", "OVERLAP")
    fresh.tell("cancel", "0")
    await noted(fresh, "cancelled")
    holder.tell("block", "0", "3")
    await noted(holder, "blocking")
    of_daemon.restored()
    assert await _runs_on_the_card(here) == 0
    assert (await noted(holder, "lost")).text == "died"
    assert not here.notes("OVERLAP")
    await until(lambda: not here.picture.leases)


async def _runs_on_the_card(here: Scene) -> int:
    """Let `gpulockd run` be on the card; 0 if it was alone there."""
    witness = str(here.crew.folder / "gpu_lock:0.witness")
    command = [sys.executable, "-m", "gpulockd", "run", "--", "flock", "--nonblock", witness, "true"]
    with anyio.fail_after(60):
        done = await anyio.run_process(
            command, check=False, cwd=ROOT, env=clean_env(GPULOCKD_SOCKET=here.daemon.socket), stderr=None
        )
    return done.returncode
