"""Real cards are offered in one pool of a host only."""

from __future__ import annotations

import asyncio
from typing import Literal

import redis

from gpulockd import gpu_lock
from gpulockd.client import process
from gpulockd.daemon.offering import Offering
from gpulockd.daemon.standing import open_session
from gpulockd.hardware.simulated import SimulatedCards
from gpulockd.model import Gpu
from gpulockd.settings import Settings
from tests.pools import QUICK, client_here, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until


class CardsOfThisTest(SimulatedCards):
    """Cards that say they are real."""

    source: Literal["nvml"] = "nvml"  # type: ignore[assignment] # that is the pretence

    async def list(self) -> tuple[Gpu, ...]:
        """Two cards."""
        return tuple(simulated(2))

    def describe(self) -> str:
        """What they are."""
        return "two cards of a test"


async def test_real_cards_wait_for_programs_in_another_pool_of_this_host(server: Server, pool: str) -> None:
    """`serve --pool a` beside programs in `default` would give GPU 0 twice."""
    other = f"{pool}-other"
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        holding = await gpu_lock("gpu_lock:0").acquire()
        with redis.Redis.from_url(server.url) as raw:
            raw.sadd("gpulockd:{fleet}:pools", pool)
        offering = Offering(
            open_session(server.url, other, Settings(session=QUICK), ""),
            Settings(session=QUICK),
            CardsOfThisTest(other, 2),
        )
        try:
            await offering.open()
            asked = asyncio.create_task(offering.offer())
            await until(lambda: pool in offering.trouble)
            assert not snapshot(server, other).offered
            await holding.release()
            await asyncio.to_thread(process.say_goodbye)
            await asked
            assert snapshot(server, other).offered
            assert offering.ready
        finally:
            await offering.close()
            with redis.Redis.from_url(server.url) as raw:
                raw.srem("gpulockd:{fleet}:pools", pool, other)
                raw.unlink(*raw.keys(f"gpulockd:{{{other}}}:*"))
