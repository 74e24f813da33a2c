"""Real cards are offered in one pool of a host only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec
import redis

from gpulockd import gpu_lock
from gpulockd.client import process
from gpulockd.client.whoami import boot_id
from gpulockd.daemon.assertions import GuardsWord
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.journal import Journal
from gpulockd.daemon.offering import Offering
from gpulockd.daemon.standing import open_session
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.watch import Watch
from gpulockd.hardware.simulated import SimulatedCards
from gpulockd.model import Gpu
from gpulockd.settings import SessionBlock, Settings
from tests.pools import CALM, client_here, daemon_here, offer, simulated, snapshot
from tests.servers import Server, wipe
from tests.states import until

BRISK = SessionBlock(ttl=6.0, keepalive=0.5, rpc_deadline=1.5, margin=0.2)
"""Session times of those who wait for the end of one (in seconds)."""


MINE = secrets.token_hex(6)


class CardsOfThisTest(SimulatedCards):
    """Cards that say they are real."""

    source: Literal["nvml"] = "nvml"  # type: ignore[assignment] # that is the pretence

    async def list(self) -> tuple[Gpu, ...]:
        """Two cards that nobody else on this host has, not even another run of this test."""
        return tuple(msgspec.structs.replace(gpu, uuid=f"{gpu.uuid}-{MINE}") for gpu in simulated(2))

    def describe(self) -> str:
        """What they are."""
        return "two cards of a test"


async def test_real_cards_wait_for_programs_in_another_pool_of_this_host(server: Server, pool: str) -> None:
    """`serve --pool a` beside programs in `default` would give GPU 0 twice."""
    other = f"{pool}-other"
    offer(server, pool, simulated(2))
    with client_here(server.url, pool), daemon_here():
        holding = await gpu_lock("gpu_lock:0").acquire()
        with redis.Redis.from_url(server.url) as raw:
            raw.sadd("gpulockd:{fleet}:pools", pool)
        offering = Offering(
            open_session(server.url, other, Settings(session=CALM), ""),
            Settings(session=CALM),
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


@asynccontextmanager
async def guarded_offer(url: str, pool: str, folder: Path) -> AsyncIterator[tuple[Guard, GuardsWord, Offering]]:
    """The offer of a host whose guard has just begun: nothing has been compared with the ledger yet."""
    journal = Journal(str(folder / "guard.log"), boot_id())
    fence, _ = journal.load()
    settings = Settings(session=BRISK)
    with Watch() as watch, Runs() as runs:
        guard = Guard(fence, journal, runs, watch)
        guard.doubtful = guard.is_first = True
        word = GuardsWord(guard)
        session = open_session(url, pool, settings, "")
        offering = Offering(session, settings, SimulatedCards(pool, 1), guard=word, offerer="one")
        await offering.open()
        await offering.offer()
        running = asyncio.create_task(offering.run())
        try:
            await until(lambda: session.guarded)
            yield guard, word, offering
        finally:
            running.cancel()
            await asyncio.wait([running])
            await offering.close()
    journal.close()


async def empty(server: Server, pool: str) -> None:
    """The pool's data are lost; wait until it waits for its guard."""
    wipe(server, pool)
    await until(lambda: meta(server, pool, "frozen_why") == "guard_away")


def meta(server: Server, pool: str, field: str) -> str:
    """One field of the pool's books."""
    with redis.Redis.from_url(server.url, decode_responses=True) as raw:
        return str(raw.hget(f"gpulockd:{{{pool}}}:meta", field) or "")


async def test_a_frozen_pool_is_offered_again_as_soon_as_the_guard_knows_all(
    server: Server, pool: str, tmp_path: Path
) -> None:
    """What a guard learns after the offer must not wait for guard_gone_after, a minute."""
    async with guarded_offer(server.url, pool, tmp_path) as (guard, _, _):
        await empty(server, pool)
        await asyncio.sleep(2 * BRISK.keepalive)
        assert meta(server, pool, "opened") == "frozen"
        guard.doubtful = False
        await until(lambda: meta(server, pool, "opened") == "known_by_guard")
        await until(lambda: meta(server, pool, "frozen_why") == "")


async def test_a_guard_that_began_alone_knows_all_after_a_ttl(server: Server, pool: str, tmp_path: Path) -> None:
    """Emptied before its first comparison, a new pool waits for whom no guard let in; their belief ends by itself."""
    async with guarded_offer(server.url, pool, tmp_path) as (guard, word, _):
        word.began_alone()
        await empty(server, pool)
        await until(lambda: meta(server, pool, "opened") == "known_by_guard")
        assert guard.doubtful
