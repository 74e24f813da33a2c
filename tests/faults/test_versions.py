"""The row of different versions: what a later one may say or leave behind is passed over, or refused with its cure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from gpulockd import lock_events
from gpulockd.ledger import revisions
from gpulockd.ledger.store import Store
from tests.daemons import CALM, Daemon, daemon_folder, eventually, running_daemon
from tests.faults.newer import TOMORROW, grown
from tests.states import until
from tests.system.commands import ROOT, clean_env, command, one_daemon
from tests.system.holders import holders
from tests.system.test_guard import queued, store_of

HAPPENS = """
local a, b, c, seq, d = string.match(redis.call('HGET', KEYS[1], 'state'), '(%S+) (%S+) (%S+) (%S+) (%S+)')
seq = string.format('%.0f', seq + 1)
redis.call('HSET', KEYS[1], 'state', table.concat({a, b, c, seq, d}, ' '))
local json = string.gsub(ARGV[1], 'SEQ', seq)
redis.call('XADD', KEYS[2], seq .. '-1', 'e', json)
redis.call('PUBLISH', KEYS[2], json)
return seq
"""
"""Something happens in a pool of which this version has no idea."""

DREAMED = {"type": "gpu_dreamed", "seq": "SEQ", "at_ms": 1, "pool": "p", "gpus": [{"key": "gpu_lock:0"}], **TOMORROW}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for those that only talk to it."""
    with one_daemon(config=CALM, simulate=1) as made:
        yield made


def happens(daemon: Daemon) -> None:
    """Let something unknown be told in the daemon's pool."""
    base = f"gpulockd:{{{daemon.pool}}}:"
    told = json.dumps(DREAMED).replace('"SEQ"', "SEQ")
    with store_of(daemon) as store:
        store.eval(HAPPENS, 2, base + "meta", base + "events", told)


@contextlib.asynccontextmanager
async def guard_of_tomorrow(daemon: Daemon) -> AsyncIterator[str]:
    """The API socket beside which it listens."""
    with tempfile.TemporaryDirectory(prefix="gl", dir="/tmp") as folder:
        words = [sys.executable, "-m", "tests.faults.newer", folder, str(daemon.runtime / "guard.sock")]
        process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL)
        try:
            await until(lambda: Path(folder, "ready").exists())
            yield f"{folder}/api.sock"
        finally:
            process.kill()
            process.wait()


async def test_program_and_guard_pass_over_words_of_tomorrow(daemon: Daemon, tmp_path: Path) -> None:
    """On a host that is being upgraded, programs of one version meet a guard of another for days."""
    async with guard_of_tomorrow(daemon) as newer:
        with holders(tmp_path / "h", daemon) as start:
            old = start.start("old")
            await old.is_in()
            new = start.start("new", GPULOCKD_SOCKET=newer)
            await queued(daemon, 1)
            after = start.start("after")
            await queued(daemon, 2)
            happens(daemon)
            for first, second in ((old, new), (new, after)):
                await anyio.sleep(1)  # keepalives, and the guard's signs of life, in both languages
                assert first.said("lost") is None
                first.leave()
                await second.is_in()
                assert first.process.wait(20) == 0
            after.leave()
            await after.is_out()
            assert "passed over" not in new.log
    assert daemon.process.poll() is None


def test_the_guard_says_which_words_it_knows(daemon: Daemon) -> None:
    """A program of tomorrow learns by one answer that it must ask otherwise here, and may go on."""
    with socket.socket(socket.AF_UNIX) as guard:
        guard.settimeout(20)
        guard.connect(str(daemon.runtime / "guard.sock"))
        heard = guard.makefile("rb")

        def asked(**words: Any) -> dict[str, Any]:
            guard.sendall(json.dumps(words).encode() + b"\n")
            while "alive" in (said := json.loads(heard.readline())):
                continue
            return dict(said)

        refused = asked(verb="foretell", session="s1")
        assert "not understood" in refused["error"]
        assert all(word in refused["hint"] for word in ("hello", "admit", "leave"))
        assert asked(verb="hello", **TOMORROW)["pool"] == daemon.pool


async def nobody_holds(daemon: Daemon) -> bool:
    """Whether every lease of the tests before is over."""
    return not (await daemon.get("/api/v1/leases")).json["leases"]


async def test_a_wish_with_unknown_words_is_refused_by_name(daemon: Daemon) -> None:
    """A wish that was half understood would give another gpu, or another limit, than was asked for."""
    await eventually(lambda: nobody_holds(daemon))
    refused = await daemon.ask("POST", "/api/v1/leases", {"gpus": ["gpu_lock:0"], "colour": "blue"})
    assert refused.status == 400 or refused.status == 422
    assert "colour" in refused.body.decode()
    assert await nobody_holds(daemon)


COMMANDS = (("status",), ("queue",), ("history", "--since", "1h"), ("alerts",), ("config", "show"))


async def _answer(daemon: Daemon, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What the daemon answers, in the words of tomorrow."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    path = head.split(" ", 2)[1]
    reply = await daemon.ask("GET", path)
    body = reply.body
    if "json" in reply.headers.get("content-type", ""):
        body = json.dumps(grown(reply.json)).encode()
    kept = {name: value for name, value in reply.headers.items() if name == "content-type"}
    given = kept | {"content-length": str(len(body)), "connection": "close", "gpulockd-tomorrow": "1"}
    lines = [f"HTTP/1.1 {reply.status} Fine", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    writer.write("\r\n".join(lines).encode() + body)
    await writer.drain()
    writer.close()


async def test_commands_read_the_answers_of_a_later_daemon(daemon: Daemon, tmp_path: Path) -> None:
    """Whoever has upgraded the service has not yet upgraded every user's environment."""
    happens(daemon)
    with holders(tmp_path / "h", daemon) as start, tempfile.TemporaryDirectory(prefix="gl", dir="/tmp") as folder:
        first = start.start("first")
        await first.is_in()
        api = f"{folder}/api.sock"
        server = await asyncio.start_unix_server(lambda r, w: _answer(daemon, r, w), api)
        async with server:
            for words in COMMANDS:
                with anyio.fail_after(60):
                    made = await anyio.run_process(
                        command(*words), env=clean_env(GPULOCKD_SOCKET=api), cwd=ROOT, check=False
                    )
                assert made.returncode == 0, (words, made.stderr[-2000:].decode())
                assert b"Traceback" not in made.stderr
        first.leave()
        await first.is_out()


async def test_events_that_nobody_knows_yet_are_passed_over(daemon: Daemon, tmp_path: Path) -> None:
    """One new kind of event must not silence the old kinds for those who listen."""
    await eventually(lambda: nobody_holds(daemon))
    heard: list[str] = []
    url = f"unix://{daemon.runtime / 'store.sock'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPULOCKD_REDIS_URL", url)
        async with asyncio.TaskGroup() as tasks:

            async def listen() -> None:
                async for event in lock_events(pool=daemon.pool):
                    heard.append(event.kind)
                    if event.kind == "lock_released":
                        return

            with store_of(daemon) as store:
                channel = f"gpulockd:{{{daemon.pool}}}:events"
                await until(lambda: store.pubsub_numsub(channel)[0][1])  # the daemon
                others = store.pubsub_numsub(channel)[0][1]
                tasks.create_task(listen())
                await until(lambda: store.pubsub_numsub(channel)[0][1] > others)
            happens(daemon)
            with holders(tmp_path / "h", daemon) as start:
                first = start.start("first")
                await first.is_in()
                happens(daemon)
                first.leave()
                await first.is_out()
    assert [kind for kind in heard if kind.startswith("lock")] == ["lock_acquired", "lock_released"]

    async def counted() -> bool:
        return bool((await daemon.get("/api/v1/statistics")).json)

    await eventually(counted)
    assert "Traceback" not in daemon.log


def _row(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


async def test_the_record_of_a_later_guard_is_read(tmp_path: Path) -> None:
    """Who goes back to the version before finds its holders inside, and nobody beside them."""
    async with daemon_folder() as base:
        async with running_daemon(config=CALM, base=base, simulate=1) as daemon:
            with holders(tmp_path / "h", daemon) as start:
                first = start.start("first")
                token = await first.is_in()
                await daemon.kill()
                (record,) = list(daemon.state.glob("guard-*.log"))
                rows = [json.loads(row.partition(b" ")[2]) for row in record.read_bytes().splitlines()]
                told = [json.dumps(grown(row)).encode() for row in rows]
                told.insert(1, json.dumps({"dreamed": "x", **TOMORROW}).encode())
                record.write_bytes(b"".join(_row(row) for row in told))
                kept = daemon.state / "configuration.json"
                kept.write_text(json.dumps(grown(json.loads(kept.read_text()))))
                async with running_daemon(config=CALM, base=base, simulate=1) as again:
                    assert not list(again.state.glob("*.damaged"))
                    (lease,) = (await again.get("/api/v1/leases")).json["leases"]
                    assert lease["token"] == token
                    second = start.start("second")
                    await queued(again, 1)
                    await anyio.sleep(1)
                    assert (first.said("lost"), second.said("in")) == (None, None)
                    first.leave()
                    await second.is_in()
                    second.leave()
                    await second.is_out()
                    assert "Traceback" not in again.log


async def test_a_revision_with_settings_of_tomorrow_changes_nothing(daemon: Daemon) -> None:
    """A fleet is upgraded host by host: who does not know a setting yet keeps its own, and says which it is."""

    async def waits() -> float:
        whole = (await daemon.get("/api/v1/config")).json
        return float(re.search(r'"max_wait_time": ?([0-9.]+)', json.dumps(whole))[1])  # type: ignore[index]

    before = await waits()
    store = Store(f"unix://{daemon.runtime / 'store.sock'}", deadline_s=5, name="later")
    try:
        now = await revisions.read(store.ask)
        number = now.current.number if now.current else None
        live: dict[str, Any] = {
            "all": {"gpu_lock": {"max_wait_time": 77, "dream": 1}, "dreams": {"on": True}},
            **TOMORROW,
        }
        told: dict[str, Any] = {"author": "later", "reason": "later", "origin": "api"}
        made = await revisions.revise(store.ask, expected=number, live=live, **told)
        assert isinstance(made, revisions.Revision)
        await eventually(lambda: "unknown key 'gpu_lock.dream'" in daemon.log, 30)
        assert await waits() == before
        live = {"all": {"gpu_lock": {"max_wait_time": 78}}, **TOMORROW}
        again = await revisions.revise(store.ask, expected=made.number, live=live, **told)
        assert isinstance(again, revisions.Revision)

        async def follows() -> bool:
            return await waits() == 78

        await eventually(follows, 30)
    finally:
        await store.aclose()
    assert daemon.process.poll() is None
    assert "Traceback" not in daemon.log


async def test_events_from_the_beginning_are_read_once_though_nobody_knows_them(daemon: Daemon) -> None:
    """Numbers begin at the clock: whoever counts up to them one by one asks the store for ever."""

    async def listen() -> None:
        async for _ in lock_events(pool=daemon.pool, after=0):
            continue

    with store_of(daemon) as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPULOCKD_REDIS_URL", f"unix://{daemon.runtime / 'store.sock'}")
        channel = f"gpulockd:{{{daemon.pool}}}:events"
        store.xtrim(channel, maxlen=0, approximate=False)
        happens(daemon)
        before = store.info("commandstats").get("cmdstat_xrange", {}).get("calls", 0)
        others = store.pubsub_numsub(channel)[0][1]
        listening = asyncio.create_task(listen())
        await until(lambda: store.pubsub_numsub(channel)[0][1] > others)
        await anyio.sleep(1)
        listening.cancel()
        assert store.info("commandstats")["cmdstat_xrange"]["calls"] - before < 50
