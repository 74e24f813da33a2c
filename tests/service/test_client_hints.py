"""What is rung is a hint: whoever may write to the store may ring, and only the ledger's answer counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from gpulockd import gpu_lock
from gpulockd.client.session import Session
from gpulockd.client.table import Ask, Entry
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.limits_verbs import reach
from gpulockd.ledger.store import BlockingStore
from gpulockd.ledger.verbs import Terms
from gpulockd.model import Job, Wants
from gpulockd.settings import QueueBlock, SettleBlock
from tests.pools import CALM, QUICK, client_here, offer, simulated, snapshot
from tests.servers import Server
from tests.service.test_client_polling import scripts_run
from tests.states import until

FORGED = 2_000


@contextmanager
def ringing(server: Server, pool: str) -> Iterator[tuple[redis.Redis, str]]:
    """A connection to the store, and the doorbell of the one session that listens."""
    with redis.Redis.from_url(server.url) as raw:
        (channel,) = (one.decode() for one in raw.pubsub_channels(f"gpulockd:{{{pool}}}:session:*"))
        yield raw, channel


async def test_only_the_ledger_asks_a_holder_to_stop(server: Server, pool: str) -> None:
    """A forged ring would make every training save its state and leave."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock() as lease:
            with ringing(server, pool) as (raw, channel):
                before = scripts_run(server)
                raw.publish(channel, f"stop {lease.id}")
                await until(lambda: scripts_run(server) > before)
                await asyncio.sleep(3 * CALM.keepalive)
            assert not lease.stopping.is_set()
            store = BlockingStore(server.url, deadline_s=5)
            store.ask(reach(PoolKeys(pool), id=lease.id, token=lease.token, level="operator", after_ms=0, stop=True))
            store.close()
            await asyncio.wait_for(lease.stopping.wait(), 20)
            assert not lease.lost.is_set()


async def test_a_flood_of_forged_grants_costs_few_questions(server: Server, pool: str) -> None:
    """Each ring asks the store; rings that come while an answer is under way ask nothing more."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock() as lease:
            waiter = asyncio.create_task(_hold_once())
            await until(lambda: len(snapshot(server, pool).queue) == 1)
            (waiting,) = snapshot(server, pool).queue
            with ringing(server, pool) as (raw, channel):
                before = scripts_run(server)
                forged = raw.pipeline(transaction=False)
                for n in range(FORGED):
                    forged.publish(channel, f"claim {waiting.id} {lease.token + n} gpu_lock:0")
                await asyncio.to_thread(forged.execute)
                await asyncio.sleep(2 * CALM.keepalive)
                assert scripts_run(server) - before < FORGED / 2
            assert not waiter.done()
        assert await waiter > lease.token


async def _hold_once() -> int:
    async with gpu_lock(nested="wait") as lease:
        return lease.token


async def test_who_waits_asks_again_when_the_ledger_says_that_it_holds() -> None:
    """A request of before that arrives late takes the claim's place, and its answer reaches nobody.

    The gpu was held by somebody who waited for it.
    """
    session = Session("unix:///nowhere", "pool", QUICK, Terms.of(QUICK, QueueBlock(), SettleBlock()))
    loop = asyncio.get_running_loop()
    entry = Entry(Ask(Wants(), 0, Job(task="test"), 1_000), session.id, loop)
    session.table.add(entry)
    entry.signal = loop.create_future()
    assert session.take_echo([(entry.id, 7, "held")]) == []
    await asyncio.wait_for(entry.signal, 20)
