"""Several daemons on one store: one configuration, whoever changes it, and whatever is killed or lost meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.configured import (
    history,
    number,
    roll_back,
    set_live,
    shown,
    until_shown,
    until_value,
    value,
    write_config,
)
from tests.daemons import Daemon, daemon_folder, eventually, running_daemon
from tests.servers import Server, valkey_binary

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

TIMES = {"session": {"ttl": 13.0, "keepalive": 0.3, "rpc_deadline": 4.0, "margin": 0.1, "claim_window": 0.5}}
"""A store that is slow for seconds refuses nobody; and a young one is frozen for no longer than a `ttl`."""


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A store of its own: the fleet's configuration belongs to nobody else."""
    binary = valkey_binary()
    assert binary is not None
    with Server(binary) as server:
        yield server


@asynccontextmanager
async def member(
    server: Server, pool: str, *, base: Path | None = None, config: dict[str, Any] | None = None
) -> AsyncIterator[Daemon]:
    """A daemon with a pool of its own on the common store."""
    wanted = TIMES | (config or {})
    async with running_daemon("--redis", server.url, "--pool", pool, base=base, config=wanted, simulate=1) as daemon:
        yield daemon


async def test_a_change_anywhere_counts_everywhere_but_a_file_only_in_its_pool(own_server: Server) -> None:
    """A fleet has one history; a host's own file is the host's own."""
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(member(own_server, "fa"))
        b = await stack.enter_async_context(member(own_server, "fb", config={"gpu_lock": {"max_poll_interval": 3}}))
        assert await number(b) == 0
        await set_live(a, {"gpu_lock": {"poll_interval": 0.5}})
        await until_value(b, "gpu_lock.poll_interval", 0.5)
        write_config(b, TIMES | {"gpu_lock": {"max_poll_interval": 4, "max_wait_time": 50}})
        await until_value(b, "gpu_lock.max_wait_time", 50)
        await until_shown(a, lambda found: found["revision"]["number"] == 2)
        assert await value(a, "gpu_lock.max_wait_time") == 1800
        # What does not fit one host's file is refused for all, and names the host.
        refused = await set_live(a, {"gpu_lock": {"poll_interval": 5}})
        assert refused.status == 422
        assert "fb" in refused.json["detail"] + refused.json["hint"]
        await set_live(a, {"gpu_lock": {"poll_interval": 1.5}}, scope="fb")
        await until_value(b, "gpu_lock.poll_interval", 1.5)
        assert await value(a, "gpu_lock.poll_interval") == 0.5
        # Going back undoes it on all hosts, the file's change too.
        assert (await roll_back(a))["restored"] == 0
        await until_value(b, "gpu_lock.max_wait_time", 1800)
        found = (await shown(b))["settings"]["gpu_lock"]
        assert (found["poll_interval"], found["max_poll_interval"]) == (2, 3)


async def test_no_change_is_lost_when_all_change_at_once(own_server: Server) -> None:
    """Each change is made from the one before, however many come at the same time."""
    leaves = [f"task{n}" for n in range(12)]
    async with AsyncExitStack() as stack:
        daemons = [await stack.enter_async_context(member(own_server, f"at-once-{n}")) for n in range(2)]
        before = await number(daemons[0])

        async def one(n: int, name: str) -> None:
            while True:  # whoever comes first is taken, so all come to their turn
                reply = await set_live(daemons[n % 2], {"tasks": {name: {"max_wait_time": n + 1}}})
                if reply.status != 409:
                    assert reply.status == 200, reply.body
                    return

        await asyncio.gather(*(one(n, name) for n, name in enumerate(leaves)))
        for daemon in daemons:
            await until_shown(daemon, lambda found: found["revision"]["number"] == before + len(leaves))
            tasks = (await shown(daemon))["settings"]["tasks"]
            assert {name: tasks[name]["max_wait_time"] for name in leaves} == {
                name: n + 1 for n, name in enumerate(leaves)
            }


async def test_a_store_that_lost_everything_gets_the_configuration_back(own_server: Server) -> None:
    """FLUSHALL must not silently undo what an operator has set."""
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(member(own_server, "flush-a"))
        b = await stack.enter_async_context(member(own_server, "flush-b"))
        await set_live(a, {"gpu_lock": {"max_wait_time": 123}})
        await until_value(b, "gpu_lock.max_wait_time", 123)
        before = await number(a)
        with redis.Redis.from_url(own_server.url) as store:
            store.flushall()
        for daemon in (a, b):
            await until_shown(daemon, lambda found: found["revision"]["number"] == before)
            assert await value(daemon, "gpu_lock.max_wait_time") == 123
        with redis.Redis.from_url(own_server.url) as store:
            await eventually(lambda: store.hget("gpulockd:{fleet}:config", "current") == str(before).encode(), 30)
            await eventually(lambda: store.smembers("gpulockd:{fleet}:pools") == {b"flush-a", b"flush-b"}, 30)
            for pool in ("flush-a", "flush-b"):
                bases = f"gpulockd:{{fleet}}:bases:{pool}"
                await eventually(partial(store.hexists, bases, "0"), 30)
        audit = (await a.ask("GET", "/api/v1/config/audit")).json["audit"]
        assert {"began", "revised", "restored"} <= {line["what"] for line in audit}, "it has no hole"
        # The pool is frozen for a while after the loss; the configuration need not wait for that.
        await eventually(partial(_is_set, b, 124), 30)
        await until_value(a, "gpu_lock.max_wait_time", 124)
        assert await number(a) == before + 1


async def _is_set(daemon: Daemon, max_wait_s: int) -> bool:
    """Whether the daemon takes that limit now."""
    return (await set_live(daemon, {"gpu_lock": {"max_wait_time": max_wait_s}})).status == 200


async def _agree(one: Daemon, other: Daemon) -> bool:
    """Whether both know the same history: each hears of the latest change at its own time."""
    return await history(one) == await history(other)


async def test_a_daemon_that_was_killed_catches_up_and_the_others_go_on(own_server: Server) -> None:
    """Killing one at any moment leaves one history, and nothing that only some go by."""
    async with daemon_folder() as base, member(own_server, "stays") as stays:
        async with member(own_server, "dies", base=base) as dies:
            asked = [asyncio.create_task(set_live(dies, {"tasks": {f"t{n}": {"max_wait_time": 5}}})) for n in range(8)]
            await until_shown(stays, lambda found: found["revision"]["number"] >= 2)
            await dies.kill()
            await asyncio.gather(*asked, return_exceptions=True)
        # What the one that was killed had sent may still change it meanwhile.
        await eventually(partial(_is_set, stays, 99), 30)
        changed_file = {"gpu_lock": {"poll_interval": 0.7}}
        async with member(own_server, "dies", base=base, config=changed_file) as back:
            await until_value(back, "gpu_lock.max_wait_time", 99)
            await until_value(back, "gpu_lock.poll_interval", 0.7)
            await until_shown(stays, lambda found: found["revision"]["origin"] == "file")
            await eventually(partial(_agree, stays, back), 30)
            ours = await history(back)
            numbers = [one["number"] for one in ours]
            assert numbers == list(range(numbers[0], -1, -1))
            assert sum(one["origin"] == "file" for one in ours) == 1
