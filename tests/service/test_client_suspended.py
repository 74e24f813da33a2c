"""A machine that was suspended: what a program asks for is answered before its keepalive thread has woken."""

from __future__ import annotations

import asyncio

from gpulockd import gpu_lock
from gpulockd.client import process
from gpulockd.client.belief import SHORTEST_S
from gpulockd.clock import boottime_s
from gpulockd.settings import SessionBlock
from tests.pools import client_here, offer, simulated
from tests.servers import Server

TIMES = SessionBlock(ttl=62.0, keepalive=15.0, rpc_deadline=10.0, margin=0.2, claim_window=10.0)
"""A keepalive thread that sleeps for longer than a test would wait for it."""

FEW = 20
"""More leases than these nobody takes and gives back before he enters one."""


async def _suspended(pool: str) -> None:
    """Let this process have heard of no keepalive for so long that no answer but one to a keepalive proves a lease."""
    session = (await process.line_for(pool)).session
    session._believed_until = session._kept_until = boottime_s() - 1.0


async def test_a_block_is_entered_without_taking_and_giving_back_again_and_again(server: Server, pool: str) -> None:
    """The keepalive thread counts its sleep on a clock that stands still in a suspend."""
    offer(server, pool, simulated(1), session=TIMES)
    with client_here(server.url, pool, TIMES):
        async with gpu_lock() as before:
            pass
        await _suspended(pool)
        async with asyncio.timeout(30.0), gpu_lock() as lease:
            assert lease.token - before.token <= FEW
            assert lease.stands


async def test_a_threads_block_is_entered_so_too(server: Server, pool: str) -> None:
    """A thread looks at the clock once more when it wakes, and must not ask in a circle either."""
    offer(server, pool, simulated(1), session=TIMES)

    def block() -> int:
        with gpu_lock() as lease:
            return lease.token

    with client_here(server.url, pool, TIMES):
        before = await asyncio.to_thread(block)
        await _suspended(pool)
        async with asyncio.timeout(30.0):
            token = await asyncio.to_thread(block)
        assert token - before <= FEW


async def test_what_is_acquired_without_a_block_is_not_lost_at_once(server: Server, pool: str) -> None:
    """Nobody looks at the clock once more on its behalf, so it must stand when it is handed out."""
    offer(server, pool, simulated(1), session=TIMES)
    with client_here(server.url, pool, TIMES):
        async with gpu_lock():
            pass
        await _suspended(pool)
        async with asyncio.timeout(30.0):
            lease = await gpu_lock().acquire()
        assert lease.stands
        await asyncio.sleep(2 * SHORTEST_S)
        assert not lease.lost.is_set(), lease.lost_reason
        await lease.release()
