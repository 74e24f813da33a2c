"""Rows of the matrix about the store: it stands still, is busy, full, forgets its functions, or has its keys spoilt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import anyio
import anyio.to_thread
import pytest
import redis

from gpulockd.ledger import lua_files
from tests.daemons import eventually
from tests.faults.scene import LONG_S, Scene, hands_over, holds, noted, own_store, scene, standing
from tests.states import until
from tests.system.workers_started import Started

Record = Callable[[str, object], None]

BUSY = "local from = os.clock() while os.clock() < from + tonumber(ARGV[1]) do end return 'done'"
BUSY_S = 4.0

FOREIGN = """#!lua name={library}
redis.register_function('{library}_something', function() return 'foreign' end)
"""

KEYS = ("meta", "sessions", "queue", "queue:exclusive:1:0:any", "heads:any", "due", "offered", "events", "counters")
"""What placing, ending and telling need; the rest of a pool's keys are written by the way only."""
MORE_KEYS = ("gpus", "held_back", "offer", "recorded", "recorded:tasks")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A store and a daemon for all of them; each leaves both as it found them."""
    with own_store() as server, standing(scene(server, tmp_path_factory.mktemp("store"))) as stage:
        yield stage


@pytest.fixture
def here(stage: Scene) -> Scene:
    """The same, and what is noted counts from now on."""
    stage.begin()
    return stage


async def test_a_store_that_stands_still_ends_no_lease(here: Scene, record_property: Record) -> None:
    """Every process is late then, and none of them is dead."""
    holder, waiter = await here.workers("holder", "waiter")
    await holds(holder)
    await here.stands_in_line(waiter)
    here.server.pause()
    await anyio.sleep(LONG_S)
    here.server.resume()
    took_s = await hands_over(holder, waiter)
    record_property("measured", f"handed on {took_s:.1f} s after the store went on")
    await here.ends(waiter)


async def test_a_busy_store_is_waited_out(here: Scene, record_property: Record) -> None:
    """A slow script of somebody else is none of our business: it is neither killed nor taken for a death."""
    holder, waiter = await here.workers("holder", "waiter")
    await holds(holder)
    await here.stands_in_line(waiter)
    with here.raw() as raw, redis.Redis.from_url(here.server.url, socket_timeout=60) as patient:
        raw.config_set("busy-reply-threshold", 20)
        async with anyio.create_task_group() as beside:
            said: list[object] = []
            beside.start_soon(anyio.to_thread.run_sync, lambda: said.append(patient.eval(BUSY, 0, BUSY_S)))
            await until(lambda: said or _is_busy(here))
        raw.config_set("busy-reply-threshold", 5000)
    assert said == [b"done"]
    took_s = await hands_over(holder, waiter)
    record_property("measured", f"handed on {took_s:.1f} s after the script had ended")
    await here.ends(waiter)


def _is_busy(here: Scene) -> bool:
    with here.raw() as other:
        try:
            return not other.ping()
        except redis.RedisError as busy:
            return "BUSY" in str(busy)


async def test_functions_that_vanish_are_loaded_again(here: Scene, record_property: Record) -> None:
    """A replica that took over, or a hand that tidied up, has none of them; nobody is to notice."""
    holder, waiter = await here.workers("holder", "waiter")
    flushes = 0
    with here.raw() as raw:

        def flush() -> None:
            nonlocal flushes
            flushes += 1
            raw.execute_command("FUNCTION", "FLUSH")

        flush()
        await holds(holder)
        for n in range(5):
            flush()
            await here.stands_in_line(waiter, str(n))
            flush()
            await hands_over(holder, waiter, str(n), str(n))
            flush()
            await anyio.sleep(0.5)  # a keepalive of each, and what the daemon looks at
            flush()
            holder.tell("ask", str(n + 1))
            await until(lambda: here.picture.queued)
            flush()
            await hands_over(waiter, holder, str(n), str(n + 1))
    record_property("measured", f"flushed {flushes} times between the steps of 10 hand-offs")
    await here.ends(holder, "5")


async def test_a_foreign_library_of_our_name_is_replaced(here: Scene) -> None:
    """Our library's name says its text: whatever else has that name is no older version, but damage."""
    library = lua_files.script("request").library
    holder, waiter = await here.workers("holder", "waiter")
    await holds(holder)
    with here.raw() as raw:
        raw.execute_command("FUNCTION", "LOAD", "REPLACE", FOREIGN.format(library=library))
    await here.stands_in_line(waiter)
    with here.raw() as raw:
        raw.execute_command("FUNCTION", "LOAD", "REPLACE", FOREIGN.format(library=library))
    await hands_over(holder, waiter)
    await here.ends(waiter)


@pytest.mark.parametrize("keys", [KEYS, MORE_KEYS], ids=["needed", "by the way"])
async def test_a_spoilt_key_is_said_and_never_lets_two_in(
    here: Scene, keys: tuple[str, ...], record_property: Record
) -> None:
    """Somebody writes over a key, and deletes it when he has seen the harm: holders go on, then the line does."""
    holder, waiter, late = await here.workers("holder", "waiter", "late")
    await holds(holder, "meta")
    slowest_s, before = 0.0, "meta"
    for name in keys:
        waiter.tell("ask", name)
        await until(lambda: here.picture.queued)
        with here.raw() as raw:
            raw.set(here.key(name), "spoilt")
        if name == "meta":
            refused = await _refused(late)
            assert "delete its keys" in refused
            await eventually(lambda: "WRONGTYPE" in here.daemon.log)
        await anyio.sleep(0.5)
        assert not waiter.find("use", name)
        with here.raw() as raw:
            raw.delete(here.key(name))
        slowest_s = max(slowest_s, await hands_over(holder, waiter, before, name))
        holder, waiter, before = waiter, holder, name
    record_property("measured", f"{len(keys)} keys, handed on {slowest_s:.1f} s after the repair at most")
    assert {note.who for note in here.notes("OVERLAP", "lost", "refused")} <= {late.name}
    assert here.daemon.process.poll() is None
    holder.tell("leave", before)
    await until(lambda: not here.picture.leases)


async def _refused(late: Started) -> str:
    """What it is told while `meta` is spoilt. Where the last answer came too late, it was told that instead."""
    refused = ""
    for n in range(10):
        late.tell("ask", f"meta-{n}", max_wait_time=1)
        refused = str((await noted(late, "refused", f"meta-{n}")).text)
        assert "StoreUnavailable" in refused
        if "WRONGTYPE" in refused:
            return refused
    raise AssertionError(refused)


async def test_a_full_store_still_takes_releases(here: Scene, record_property: Record) -> None:
    """A lock that cannot be given back because memory is short would keep it short; so no step of ours is refused."""
    holder, waiter = await here.workers("holder", "waiter")
    await holds(holder)
    await here.stands_in_line(waiter)
    with here.raw() as raw:
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] // 2)
        with pytest.raises(redis.OutOfMemoryError):
            raw.set("foreign", "x")
    (late,) = await here.workers("late")
    await here.stands_in_line(late)
    await anyio.sleep(4)  # longer than a session lives without its keepalives
    took_s = await hands_over(holder, waiter)
    await hands_over(waiter, late)
    await here.ends(late)
    record_property("measured", f"asked, kept alive and handed on while full ({took_s * 1000:.0f} ms)")
    with here.raw() as raw:
        raw.config_set("maxmemory", 0)


async def test_a_store_without_a_free_connection_is_waited_for(here: Scene, record_property: Record) -> None:
    """Other programs have taken all connections: holders go on, newcomers are told why, and it heals by itself."""
    holder, waiter, late = await here.workers("holder", "waiter", "late")
    await holds(holder)
    await here.stands_in_line(waiter)
    with here.raw() as raw:
        raw.config_set("maxclients", 1)
        raw.client_kill_filter(_type="normal", skipme=True)
        raw.client_kill_filter(_type="pubsub", skipme=True)
        late.tell("ask", "0", '{"max_wait_time": 1}')
        refused = (await noted(late, "refused")).text
        assert "StoreUnavailable" in refused
        await anyio.sleep(4)  # longer than a session lives without its keepalives
        assert not waiter.find("use")
        raw.config_set("maxclients", 1000)
    began_s = time.monotonic()
    await hands_over(holder, waiter)
    record_property("measured", f"handed on {time.monotonic() - began_s:.1f} s after there was room again")
    assert not here.notes("OVERLAP", "lost")
    waiter.tell("leave", "0")
    await until(lambda: not here.picture.leases)
