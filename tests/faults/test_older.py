"""The rows of upgrades: the version that users have and this one, in one pool, on one host, one after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import redis

from gpulockd import events
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.lua_files import script
from gpulockd.settings import SessionBlock
from tests.daemons import STEADY, Daemon, daemon_folder, running_daemon
from tests.faults.judge import Story, judged
from tests.faults.older import OLDER, Version, Versions, crews, versions
from tests.faults.scene import Scene, hands_over, holds, noted, own_store
from tests.pools import GIB, offer, simulated, snapshot
from tests.servers import Server, assert_quiet, keys_left
from tests.states import until
from tests.system.commands import Started as Command
from tests.system.commands import ask, leases, queued
from tests.system.history import read_events, troubles
from tests.system.witness import CARD_GIB
from tests.system.workers_started import Crew, Started

SESSION = SessionBlock(**STEADY["session"])
ROUNDS = 8


@pytest.fixture(scope="module")
def both(pytestconfig: pytest.Config) -> Versions:
    """This version and the older one."""
    return versions(pytestconfig)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A store for those that each have a pool of their own in it."""
    with own_store() as made:
        yield made


def library_of(version: Version) -> str:
    """The name of a version's functions in the store."""
    asks = "from gpulockd.ledger.lua_files import script; print(script('request').library)"
    made = subprocess.run([sys.executable, "-c", asks], env=version.env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


async def finished(*workers: Started) -> None:
    """Wait until they have ended by themselves."""
    for worker in workers:
        await anyio.to_thread.run_sync(worker.finish)


def looping(crew: Crew, *names: str, wishes: Sequence[dict[str, Any]] = ({},)) -> list[Started]:
    """Programs that ask, hold for a moment and leave, again and again."""
    return crew.start("loop", *names, rounds=ROUNDS, hold_s=[0.0, 0.01], wishes=wishes)


@pytest.mark.parametrize("of_daemon", ["new", "old"])
async def test_programs_of_both_versions_stand_in_one_line(
    both: Versions, server: Server, pool: str, tmp_path: Path, of_daemon: str
) -> None:
    """Not every environment is upgraded with the service, nor after it."""
    offer(server, pool, simulated(1), session=SESSION)  # in a store that is as young as this one, nobody begins yet
    where = ("--redis", server.url, "--pool", pool)
    async with running_daemon(*where, config=STEADY, env=both.named(of_daemon).env, simulate=1) as daemon:
        await until(lambda: not snapshot(server, daemon.pool).frozen_ms)
        with crews(tmp_path, server.url, daemon.pool, SESSION, both, GPULOCKD_SOCKET=daemon.socket) as crew:
            scene = Scene(server, daemon, crew["new"])
            line = [
                crew[of].obedient(f"{of}-{n}")[0] for n, of in enumerate(("old", "new", "old", "new", "new", "old"))
            ]
            await holds(line[0])
            for waiter in line[1:]:
                await scene.stands_in_line(waiter)
            for before, after in pairwise(line):
                await hands_over(before, after)
            await scene.ends(line[-1])
            await finished(*looping(crew["old"], "old-a", "old-b"), *looping(crew["new"], "new-a", "new-b"))
            notes = crew["new"].notes()
        assert "Traceback" not in daemon.log
    assert_quiet(server, daemon.pool)
    told = read_events(server, daemon.pool)
    story = Story(notes=notes, told=told, keys_left=keys_left(server, daemon.pool), gpus=("gpu_lock:0",), equal=True)
    assert not judged(story)
    rung = {event.lease for event in told if isinstance(event, events.LockAcquired) and event.via == "doorbell"}
    assert {note.who[:3] for note in notes if note.lease in rung} == {"old", "new"}
    with redis.Redis.from_url(server.url, decode_responses=True) as store:
        loaded = {library["library_name"] for library in store.execute_command("FUNCTION", "LIST")}
    assert {library_of(both.old), script("request").library} <= loaded


def asked(daemon: Daemon, task: str) -> bool:
    """Whether the ledger knows of its request."""
    return bool(queued(daemon, task) or leases(daemon, task))


WISHES: list[dict[str, Any]] = [{}, {"gpus": [1]}, {"count": 2}, {"memory": "8GiB"}, {"priority": 5}]


async def test_versions_share_a_pool_without_a_daemon(
    both: Versions, server: Server, pool: str, tmp_path: Path
) -> None:
    """Then the two libraries in the store are all that keeps order: each end may hand on to the other's programs."""
    offer(server, pool, simulated(2, memory_mib=CARD_GIB * GIB), session=SESSION)
    with crews(tmp_path, server.url, pool, SESSION, both) as crew:
        await finished(
            *(loop for name in crew for loop in looping(crew[name], f"{name}-a", f"{name}-b", wishes=WISHES))
        )
        notes = crew["new"].notes()
    assert_quiet(server, pool)
    gpus = ("gpu_lock:0", "gpu_lock:1")
    assert not judged(Story(notes=notes, told=read_events(server, pool), gpus=gpus, shared=frozenset(gpus)))
    assert not troubles(notes)
    assert len([note for note in notes if note.what == "use"]) == 4 * ROUNDS


async def has_begun_again(loops: list[Started]) -> None:
    """Wait until each of them has been on its card a few times more."""

    def uses(worker: Started) -> int:
        return sum(note.what == "use" for note in worker.notes())

    before = [uses(worker) for worker in loops]
    await until(lambda: all(uses(worker) > count + 2 for worker, count in zip(loops, before, strict=True)))


async def test_daemons_of_both_versions_replace_each_other_under_load(
    both: Versions, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """An upgrade is a restart while everybody works, and so is going back; the private store outlives both."""
    async with AsyncExitStack() as stack:
        base = await stack.enter_async_context(daemon_folder())
        how: dict[str, Any] = {"base": base, "config": STEADY, "simulate": 4}
        daemon = await stack.enter_async_context(running_daemon(env=both.old.env, **how))
        where = (tmp_path, daemon.store_url, daemon.pool, SESSION, both)
        crew = stack.enter_context(crews(*where, GPULOCKD_SOCKET=daemon.socket))
        loops = [
            crew[name].start("loop", f"{name}-loop", hold_s=[0.0, 0.05], wishes=[{"gpus": [1]}])[0] for name in crew
        ]
        runs = {}
        for gpu, each in enumerate((both.old, both.new), 2):
            words = ("run", "--gpu", str(gpu), "--task", f"run-{each}", "--", "sleep", "300")
            runs[each.name] = Command(daemon, tmp_path, *words, **each.env)
            stack.callback(runs[each.name].close)
        await until(lambda: all(leases(daemon, f"run-{name}") for name in runs))
        before = {name: leases(daemon, f"run-{name}")[0]["token"] for name in runs}
        line = [crew[of].obedient(f"{of}-{n}")[0] for n, of in enumerate(("old", "new", "old", "new"))]
        for worker in line:
            worker.tell("ask", "0", gpus=[0], task=worker.name)
            await until(partial(asked, daemon, worker.name))
        await noted(line[0], "use")
        for version, end in ((both.new, "stop"), (both.old, "kill"), (both.new, "kill")):
            await (daemon.stop() if end == "stop" else daemon.kill())
            daemon = await stack.enter_async_context(running_daemon(env=version.env, **how))
            await has_begun_again(loops)
            await hands_over(line[0], line[1])
            line = line[1:]
            now = {name: leases(daemon, f"run-{name}")[0]["token"] for name in runs}
            assert now == before
        line[-1].tell("leave", "0")
        await noted(line[-1], "left")
        for run in runs.values():
            run.process.terminate()
            assert await anyio.to_thread.run_sync(run.wait) == 143
        for worker in loops:
            worker.kill()
        notes = crew["new"].notes()
        await until(lambda: not ask(daemon, "leases"))
        with redis.Redis.from_url(daemon.store_url) as store:
            rows = store.xrange(PoolKeys(daemon.pool).events_channel)
        told = [event for _, fields in rows if (event := events.decode(fields[b"e"])) is not None]
        assert not judged(Story(notes=notes, told=told))
        assert not troubles(notes)
        assert "Traceback" not in daemon.log
        turns = sum(note.what == "use" for note in notes)
        record_property("measured", f"{turns} turns of two versions, {OLDER[:7]} one of them, through 3 exchanges")
