"""A pool publishes another configuration: new requests use it at once, running ones keep what they began with."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import redis

from gpulockd import GpuLockTimeout, Lease, gpu_lock
from gpulockd.client import process
from gpulockd.client.session import Session
from gpulockd.daemon.offering import Offering
from gpulockd.daemon.standing import defaults_of, open_session
from gpulockd.hardware.simulated import SimulatedCards
from gpulockd.ledger import publishing
from gpulockd.ledger.lua_files import library
from gpulockd.ledger.store import BlockingStore
from gpulockd.ledger.verbs import Call, Terms
from gpulockd.settings import GpuLockBlock, SessionBlock, Settings
from tests.lua.harness import planted
from tests.pools import CALM, QUICK, client_here, snapshot
from tests.servers import Server, wipe
from tests.states import until

SELDOM = SessionBlock(ttl=200.0, keepalive=60.0, rpc_deadline=10.0, margin=0.2)
"""A session whose keepalive repairs nothing within a test: what comes, came by message."""

PATIENT = Settings(session=CALM, gpu_lock=GpuLockBlock(max_wait_time=60.0))
UNWILLING = Settings(session=CALM, gpu_lock=GpuLockBlock(max_wait_time=0.0))
HASTY = Settings(session=CALM, gpu_lock=GpuLockBlock(max_wait_time=0.1))
UNTOLD = planted(
    """redis.call(meta.cluster == '1' and 'SPUBLISH' or 'PUBLISH', names.base .. 'config',
      'defaults ' .. text(version) .. ' ' .. defaults)""",
    "",
    "_published",
)
"""A library that publishes and tells nobody: every message is lost."""


@asynccontextmanager
async def offering_daemon(url: str, pool: str, session: SessionBlock = CALM) -> AsyncIterator[Offering]:
    """A daemon's offer of one card, for clients that are patient."""
    settings = msgspec.structs.replace(PATIENT, session=session)
    offering = Offering(open_session(url, pool, settings, ""), settings, SimulatedCards(pool, 1), offerer="one")
    offering.vouch(await _run_id(offering), fresh=True)
    await offering.open()
    await offering.offer()
    running = asyncio.create_task(offering.run())
    try:
        yield offering
    finally:
        running.cancel()
        await asyncio.wait([running])
        await offering.close()


async def _run_id(offering: Offering) -> str:
    return await offering.store.run_id()


async def held() -> Lease:
    """The card, held by a task that is none of the test's."""
    asked = gpu_lock(max_wait_time=30).acquire()
    return await asyncio.get_running_loop().create_task(asked, context=contextvars.Context())


async def is_hasty(within_s: float = 20.0) -> bool:
    """Whether a request that begins now, while the card is held, gives up by itself."""
    try:
        asked = asyncio.create_task(gpu_lock().acquire(), context=contextvars.Context())
        async with asyncio.timeout(within_s):
            await asked
    except GpuLockTimeout:
        return True
    except TimeoutError:
        return False
    raise AssertionError("the card was free")


def my_session() -> Session:
    """This process's session as a client."""
    session = process.known_session(None)
    assert session is not None
    return session


def publish_untold(offering: Offering, url: str, settings: Settings) -> int:
    """Publish as the daemon does, but nobody hears the message. Returns the version."""
    version = (offering._said.version or 0) + 1
    call: Call[Any] = publishing.publish(
        offering.session.keys, session=offering.session.id, version=version, defaults=defaults_of(settings)
    )
    store = BlockingStore(url, deadline_s=5)
    answer = store.ask(Call(library(UNTOLD)["publish"], call.keys, call.args, call.read))
    store.close()
    assert isinstance(answer, publishing.Published)
    return version


async def test_a_request_after_the_change_uses_it_and_a_running_wait_does_not(server: Server, pool: str) -> None:
    """The documented promise of a live change, for loops and threads alike."""
    async with offering_daemon(server.url, pool, SELDOM) as offering:
        with client_here(server.url, pool, SELDOM):
            holder = await held()
            waiting = asyncio.create_task(gpu_lock().acquire(), context=contextvars.Context())
            await until(lambda: snapshot(server, pool).queued == 1)
            version = await offering.publish(defaults_of(HASTY), event=("config_changed", "revision 1"))
            await until(lambda: my_session().version == version)
            assert await is_hasty()
            with pytest.raises(GpuLockTimeout):
                await asyncio.to_thread(_take_in_a_thread)
            await asyncio.sleep(3 * HASTY.gpu_lock.max_wait_time)
            assert not waiting.done()
            await holder.release()
            await (await waiting).release()
    with redis.Redis.from_url(server.url) as raw:
        rows: Any = raw.xrange(f"gpulockd:{{{pool}}}:events")
    told = [fields[b"e"] for _, fields in rows if b'"config_changed"' in fields[b"e"]]
    assert len(told) == 1 and b'"reason":"revision 1"' in told[0]


def _take_in_a_thread() -> None:
    with gpu_lock():
        pass


async def test_a_lost_message_is_repaired_by_the_keepalive(server: Server, pool: str) -> None:
    """A process that asks for nothing must know too, before it asks."""
    async with offering_daemon(server.url, pool) as offering:
        with client_here(server.url, pool):
            holder = await held()
            assert not await is_hasty(2.0)
            version = await asyncio.to_thread(publish_untold, offering, server.url, HASTY)
            await until(lambda: my_session().version == version)
            assert await is_hasty()
            await holder.release()


@pytest.mark.parametrize("before", [PATIENT, UNWILLING])
async def test_a_request_that_learns_of_a_missed_change_goes_by_it(server: Server, pool: str, before: Settings) -> None:
    """A proxy may swallow messages for as long as it likes; the request's own answer tells that there was one."""
    async with offering_daemon(server.url, pool, SELDOM) as offering:
        with client_here(server.url, pool, SELDOM):
            holder = await held()
            version = await offering.publish(defaults_of(before))
            await until(lambda: my_session().version == version)
            after = HASTY if before is PATIENT else PATIENT
            version = await asyncio.to_thread(publish_untold, offering, server.url, after)
            assert my_session().version < version
            assert await is_hasty(20.0 if after is HASTY else 2.0) == (after is HASTY)
            assert my_session().version == version
            await holder.release()


async def test_what_a_call_says_itself_is_not_changed_by_a_missed_change(server: Server, pool: str) -> None:
    """Arguments of the call go over all that is published."""
    async with offering_daemon(server.url, pool, SELDOM) as offering:
        with client_here(server.url, pool, SELDOM):
            holder = await held()
            await asyncio.to_thread(publish_untold, offering, server.url, HASTY)
            waiting = asyncio.create_task(gpu_lock(max_wait_time=30).acquire(), context=contextvars.Context())
            await until(lambda: snapshot(server, pool).queued == 1)
            await asyncio.sleep(3 * HASTY.gpu_lock.max_wait_time)
            assert not waiting.done()
            await holder.release()
            await (await waiting).release()


async def test_a_client_without_a_subscription_polls_and_uses_the_change(server: Server, pool: str) -> None:
    """Where notifications never come, the answers of the commands tell of the version."""
    async with offering_daemon(server.url, pool) as offering:
        with redis.Redis.from_url(server.url) as raw:
            raw.execute_command("ACL", "SETUSER", "default", "-subscribe")
        try:
            with client_here(server.url, pool):
                holder = await held()
                version = await offering.publish(defaults_of(HASTY))
                await until(lambda: my_session().version == version)
                assert await is_hasty()
                await holder.release()
        finally:
            with redis.Redis.from_url(server.url) as raw:
                raw.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.leaves_keys
async def test_an_emptied_store_gets_the_newest_defaults_with_the_next_offer(server: Server, pool: str) -> None:
    """FLUSHALL must not bring the configuration of the daemon's start back."""
    async with offering_daemon(server.url, pool, QUICK) as offering:
        with client_here(server.url, pool, QUICK):
            await (await held()).release()
            version = await offering.publish(defaults_of(HASTY))
            wipe(server, pool)
            offering.keeper.wake()
            await until(lambda: _published(server, offering) == (version, 0.1))
            await until(lambda: my_session().version == version)
            assert my_session().defaults["gpu_lock"]["max_wait_time"] == 0.1


def _published(server: Server, offering: Offering) -> tuple[int, float] | None:
    store = BlockingStore(server.url, deadline_s=5)
    answer = store.ask(publishing.published(offering.session.keys))
    store.close()
    if not isinstance(answer, publishing.Published) or not answer.defaults:
        return None
    return answer.version, answer.defaults["gpu_lock"]["max_wait_time"]


async def test_other_terms_are_offered_and_published_together(server: Server, pool: str) -> None:
    """The keepalive of a fleet can be changed live; no session ends sooner for it."""
    async with offering_daemon(server.url, pool) as offering:
        with client_here(server.url, pool):
            async with gpu_lock() as lease:
                times = msgspec.structs.replace(CALM, keepalive=0.25)
                other = Terms.of(times, PATIENT.queue, PATIENT.settle)
                await offering.publish(defaults_of(HASTY), terms=other)
                await until(lambda: my_session().keepalive_s == 0.25)
                assert not lease.lost.is_set()
