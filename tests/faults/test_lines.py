"""Rows of the matrix about the lines to the store: what is lost, torn, flooded or forged on them."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from gpulockd import StoreUnavailable, gpu_lock
from gpulockd.settings import SessionBlock
from tests.faults.scene import LONG_S, Scene, hands_over, holds, noted, own_store, scene, standing
from tests.pools import client_here, offer, simulated, snapshot
from tests.proxies import Proxy, proxied
from tests.servers import Server
from tests.states import until
from tests.system.workers_started import Started

Record = Callable[[str, object], None]

MOST_REQUESTS = 40
CARDS = 8
TEARS = 12
FORGED = 10_000
FLOOD_S = 4.0

CURT = SessionBlock(ttl=40.0, keepalive=0.5, rpc_deadline=0.5, margin=0.2, claim_window=0.6)
"""What was lost is soon asked again, and a machine that stands still costs nobody a session (in seconds)."""

PATIENT = {"settle": {"timeout": 60, "grace": 20}}
"""Who is told of a loss has ten seconds to note it before it is signalled."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A store and a daemon for those that need no proxy."""
    with own_store() as server, standing(scene(server, tmp_path_factory.mktemp("lines"))) as stage:
        yield stage


@pytest.fixture
def here(stage: Scene) -> Scene:
    """The same, and what is noted counts from now on."""
    stage.begin()
    return stage


async def _takes_a_turn(server: Server, pool: str) -> bool:
    """Hold the gpu once. False if the store, which had never answered, was given up: it gets two deadlines."""
    try:
        async with gpu_lock(max_wait_time=50):
            assert len(snapshot(server, pool).leases) == 1
    except StoreUnavailable:
        return False
    return True


async def test_requests_that_never_arrive_take_one_place(
    valkey_server: Server, pool: str, record_property: Record
) -> None:
    """Invariant 3 for the other direction: what the store has never seen is asked again, with the same id."""
    offer(valkey_server, pool, simulated(1), session=CURT)
    too_late = 0
    for swallow in range(1, MOST_REQUESTS):
        before = snapshot(valkey_server, pool).counters
        async with proxied(valkey_server) as proxy:
            proxy.swallow = swallow
            with client_here(proxy.url, pool, CURT):
                async with asyncio.timeout(60):
                    while not await _takes_a_turn(valkey_server, pool):
                        too_late += 1
                swallowed, proxy.swallow = proxy.lost, 0
                await until(lambda: not snapshot(valkey_server, pool).leases)
        after = snapshot(valkey_server, pool).counters
        for name in ("lock_acquired", "lock_released"):
            assert after[name] - before.get(name, 0) == 1, (swallow, name)
        if not swallowed:
            break
    else:
        pytest.fail(f"more than {MOST_REQUESTS} requests")
    assert swallow > 3
    assert too_late < 3, "only a machine that stands still for a second makes it so"
    record_property("measured", f"each of {swallow - 1} requests lost once")


async def test_a_reset_in_the_middle_of_replies_crosses_none(
    valkey_server: Server, pool: str, record_property: Record
) -> None:
    """Many tasks share a connection: a reply that goes to the wrong one would put two on a card."""
    offer(valkey_server, pool, simulated(CARDS), session=CURT)
    on_card: dict[str, str] = {}
    tokens: list[int] = []
    async with proxied(valkey_server) as proxy:

        async def turns(index: int) -> None:
            key, me = f"gpu_lock:{index % (CARDS // 2)}", f"task-{index}"
            while proxy.lost < TEARS:
                async with gpu_lock(key, task=me, max_wait_time=90) as lease:
                    assert (lease.gpu.key, lease.task) == (key, me)
                    assert on_card.setdefault(key, me) == me
                    tokens.append(lease.token)
                    await asyncio.sleep(0.01)
                    del on_card[key]

        with client_here(proxy.url, pool, CURT):
            async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
                proxy.tear = 7
                for index in range(CARDS):
                    tasks.create_task(turns(index))
            proxy.tear = 0
            await until(lambda: not snapshot(valkey_server, pool).leases)
    assert len(set(tokens)) == len(tokens)
    record_property("measured", f"{proxy.lost} replies torn among {len(tokens)} grants")


async def test_a_subscriber_that_was_cut_off_asks_again(here: Scene, record_property: Record) -> None:
    """Whoever does not read is thrown out by the store, and with it goes every doorbell until it subscribes again."""
    holder, waiter = await here.workers("holder", "waiter")
    await holds(holder)
    await here.stands_in_line(waiter)
    with here.raw() as raw:
        raw.config_set("client-output-buffer-limit", "pubsub 65536 32768 1")
        (channel,) = await _channels(here, waiter)
        waiter.stop()
        sent = 0
        while raw.publish(channel, b"x" * 4096):
            sent += 1
            assert sent < FORGED, "the subscriber was not cut off"
        holder.tell("leave", "0")
        waiter.resume()
        began_s = time.monotonic()
        await noted(waiter, "use")
        await until(lambda: waiter.logged("notifications from Redis are back"))
        record_property("measured", f"in {time.monotonic() - began_s:.1f} s after it read again")
        raw.config_set("client-output-buffer-limit", "pubsub 33554432 8388608 60")
    await here.ends(waiter)


async def _channels(here: Scene, *workers: Started) -> list[str]:
    """The doorbells of these workers."""
    pids = {worker.process.pid: n for n, worker in enumerate(workers)}
    found: dict[int, str] = {}
    picture = here.picture
    for ticket in (*picture.leases, *picture.queue):
        if ticket.process is not None and ticket.process.pid in pids:
            found[pids[ticket.process.pid]] = here.key(f"session:{ticket.session}")
    return [found[n] for n in sorted(found)]


def _forged(here: Scene) -> Iterator[bytes]:
    """Doorbells of every form, for those who wait and those who hold, and what is none."""
    dice = random.Random(7)
    picture = here.picture
    (lease,), (ticket,) = picture.leases, picture.queue
    tokens = (lease.token, lease.token + 1, lease.token + 1000, 0, -1, 1 << 60)
    for id, token in itertools.cycle(itertools.product((ticket.id, lease.id, "f" * 32, ""), tokens)):
        yield f"claim {id} {token} gpu_lock:0".encode()
        yield f"claim {id} {token}".encode()
        yield f"echo 1 {id}:{token}:claim {id}:{token}:away".encode()
        yield f"echo 999999 {id}:{token}:held".encode()
        yield f"echo {id}".encode()
        yield f"claim {id} soon gpu_lock:0".encode()
        yield f"lost {ticket.id} overruled".encode()
        yield f"lost {lease.id} overruled".encode()
        yield b"defaults 1 {}"
        yield b"defaults x"
        yield dice.randbytes(dice.randrange(64))


async def test_forged_doorbells_let_nobody_in(here: Scene, record_property: Record) -> None:
    """A message is a hint: what counts is what the ledger answers when the hint is followed."""
    holder, waiter = await here.workers("holder", "waiter")
    await holds(holder)
    await here.stands_in_line(waiter)
    channels = await _channels(here, holder, waiter)
    with here.raw() as raw:
        forged = list(itertools.islice(_forged(here), FORGED))
        for part in range(0, FORGED, 500):
            with raw.pipeline(transaction=False) as pipe:
                for message, channel in itertools.product(forged[part : part + 500], channels):
                    pipe.publish(channel, message)
                pipe.execute()
            await anyio.sleep(0.05)
    assert not waiter.find("enter")
    assert not holder.find("lost")
    took_s = await hands_over(holder, waiter)
    record_property("measured", f"{FORGED} forged, the true one heard after {took_s:.1f} s")
    await here.ends(waiter)


async def test_a_storm_of_messages_costs_nobody_a_lease(here: Scene, record_property: Record) -> None:
    """Keepalives have lines of their own, which no message can stop up."""
    holder, waiter = await here.workers("holder", "waiter")
    await holds(holder)
    await here.stands_in_line(waiter)
    channels = [*await _channels(here, holder, waiter), here.key("events"), here.key("config")]
    sent, ends_s = 0, time.monotonic() + FLOOD_S

    def storm() -> None:
        nonlocal sent
        with here.raw() as raw:
            while time.monotonic() < ends_s:
                with raw.pipeline(transaction=False) as pipe:
                    for channel in channels * 50:
                        pipe.publish(channel, "echo 1 nothing:1:held")
                    sent += len(pipe.execute())

    async with anyio.create_task_group() as beside:
        beside.start_soon(anyio.to_thread.run_sync, storm)
        await anyio.sleep(FLOOD_S - 1)
        took_s = await hands_over(holder, waiter)
    record_property("measured", f"{sent / FLOOD_S:.0f} messages/s; handed on meanwhile in {took_s:.2f} s")
    await here.ends(waiter)


async def _cut_off_before_a_limit(here: Scene, holder: Started, proxy: Proxy) -> float:
    """Cut the daemon off while the holder has a lease whose hard limit (returned, in seconds) has not come yet."""
    for limit_s in (3, 9, 27):  # on a machine that stands still just then, the limit comes first
        key, levels = _limited(limit_s), {"warning": limit_s - 2, "soft_timeout": limit_s - 1, "hard_timeout": limit_s}
        holder.tell("ask", key, **levels)
        await noted(holder, "use", key)
        proxy.refusing = True
        proxy.cut()
        if here.picture.leases:
            return limit_s
        proxy.refusing = False
        await noted(holder, "lost", key)
    raise AssertionError("every limit came before the daemon was cut off")


def _limited(limit_s: float) -> str:
    """The name of a lease with that limit in the holder's diary."""
    return f"limited-{limit_s:g}"


async def test_a_daemon_that_is_cut_off_lets_nobody_new_in(tmp_path: Path, record_property: Record) -> None:
    """It cannot know what the ledger says, so nobody begins, and whoever is in stays in; a limit that has passed
    meanwhile acts as soon as the line is back."""
    with own_store() as server:
        async with proxied(server) as proxy, scene(server, tmp_path, daemon_url=proxy.url, config=PATIENT) as here:
            holder, waiter = await here.workers("holder", "waiter")
            await holds(holder)
            await here.stands_in_line(waiter)
            proxy.refusing = True
            proxy.cut()
            await anyio.sleep(LONG_S)
            assert not here.notes("lost", "refused")
            assert not waiter.find("enter")
            proxy.refusing = False
            took_s = await hands_over(holder, waiter)
            await here.ends(waiter)
            limit_s = await _cut_off_before_a_limit(here, holder, proxy)
            await anyio.sleep(limit_s + 1)
            assert not holder.find("lost", _limited(limit_s))
            proxy.refusing = False
            began_s = time.monotonic()
            await noted(holder, "lost", _limited(limit_s))
            limited_s = time.monotonic() - began_s
            record_property("measured", f"handed on {took_s:.1f} s, limits {limited_s:.1f} s after the line was back")
