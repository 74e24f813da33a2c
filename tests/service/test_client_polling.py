"""No polling while the subscription stands; polling with backoff while it is down, and it says both."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time

import pytest
import redis

from gpulockd import Lease, LeaseLost, gpu_lock
from tests.pools import CALM, QUICK, client_here, offer, simulated, snapshot
from tests.proxies import proxied
from tests.servers import Server
from tests.states import until


def scripts_run(server: Server) -> int:
    """How many scripts the clients of the server have called."""
    with redis.Redis.from_url(server.url) as raw:
        stats = raw.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("fcall",))


async def test_a_broken_subscription_is_polled_around_and_comes_back(
    server: Server, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A lost doorbell costs time, never the place; both switches are said."""
    caplog.set_level(logging.INFO, logger="gpulockd")
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        holder = await _held_elsewhere()

        async def wait() -> int:
            async with gpu_lock(poll_interval="100ms", max_wait_time=30) as lease:
                return lease.token

        waiting = asyncio.create_task(wait())
        await until(lambda: snapshot(server, pool).queued == 1)
        with redis.Redis.from_url(server.url) as raw:
            raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: "notifications from Redis are lost" in caplog.text)
        await holder.release()
        assert await waiting > holder.token
        await until(lambda: "notifications from Redis are back" in caplog.text)


async def test_waiters_poll_while_no_subscription_can_be_made(server: Server, pool: str) -> None:
    """The fallback works by itself: the doorbell never rings, the state is asked for."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        holder = await _held_elsewhere()
        with redis.Redis.from_url(server.url) as raw:
            raw.acl_setuser(
                "default", enabled=True, nopass=True, commands=["-subscribe"], categories=["+@all"], keys=["*"]
            )
            raw.execute_command("ACL", "SETUSER", "default", "-subscribe")
            raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            try:

                async def wait() -> int:
                    async with gpu_lock(poll_interval="50ms", max_wait_time=30) as lease:
                        return lease.token

                waiting = asyncio.create_task(wait())
                await until(lambda: snapshot(server, pool).queued == 1)
                await holder.release()
                assert await waiting > holder.token
            finally:
                raw.execute_command("ACL", "SETUSER", "default", "+@all")


async def test_a_waiter_sends_nothing_while_subscribed(server: Server, pool: str) -> None:
    """The line is fair without anybody asking again and again: one keepalive per process is all."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        holder = await _held_elsewhere()
        waiters = [asyncio.create_task(_hold_briefly()) for _ in range(20)]
        await until(lambda: snapshot(server, pool).queued == 20)
        before, began_s = scripts_run(server), time.monotonic()
        await asyncio.sleep(4 * CALM.keepalive)
        sent = scripts_run(server) - before
        assert sent <= (time.monotonic() - began_s) / CALM.keepalive + 2
        await holder.release()
        await asyncio.gather(*waiters)


async def _hold_briefly() -> None:
    async with gpu_lock(max_wait_time=30):
        pass


async def _held_elsewhere() -> Lease:
    loop = asyncio.get_running_loop()
    return await loop.create_task(gpu_lock(max_wait_time=30).acquire(), context=contextvars.Context())


async def test_a_holder_cut_off_from_redis_stops_when_its_belief_is_over(server: Server, pool: str) -> None:
    """Without a guard nobody else may stop it before the ledger gives the gpu to the next one."""
    offer(server, pool, simulated(1), session=QUICK)
    async with proxied(server) as proxy:
        with client_here(proxy.url, pool, QUICK):
            with pytest.raises(LeaseLost, match="cut off"):
                async with gpu_lock():
                    proxy.refusing = True
                    proxy.cut()
                    await asyncio.sleep(30)
            # The ledger still keeps the lease for it: belief ends before the session does.
            assert len(snapshot(server, pool).leases) == 1
            proxy.refusing = False
            await until(lambda: not snapshot(server, pool).leases)


async def test_an_outage_shorter_than_belief_costs_a_holder_nothing(server: Server, pool: str) -> None:
    """A restart of the network or a stall of the server is no reason to stop a training."""
    offer(server, pool, simulated(1))
    async with proxied(server) as proxy:
        with client_here(proxy.url, pool):
            async with gpu_lock() as lease:
                proxy.refusing = True
                proxy.cut()
                await asyncio.sleep(1.0)
                believed = lease._session.believed_until()
                proxy.refusing = False
                await until(lambda: lease._session.believed_until() > believed)
                assert not lease.lost.is_set()
                await lease.progress(50)


async def test_a_request_waits_out_an_outage_of_redis(server: Server, pool: str) -> None:
    """Redis unreachable: wait and retry until the wait limit, never run unlocked."""
    offer(server, pool, simulated(1))
    async with proxied(server) as proxy:
        with client_here(proxy.url, pool):
            async with gpu_lock():
                pass
            proxy.refusing = True
            proxy.cut()
            asking = asyncio.create_task(_hold_briefly())
            await asyncio.sleep(0.5)
            assert not asking.done()
            proxy.refusing = False
            async with asyncio.timeout(30):
                await asking
