"""The whole daemon as a process: its start, its restart, its end, and what it ends on time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest
import redis

from gpulockd.client.finding import hello
from gpulockd.client.whoami import boot_id
from tests.daemons import STEADY, Daemon, daemon_folder, eventually, running_daemon, start_daemon
from tests.servers import Server

HOLDER = """
import os, sys, time
from gpulockd import gpu_lock
with gpu_lock(task="holder") as lease:
    print(lease.token, flush=True)
    sys.stdin.readline()
    print("lost" if lease.lost.is_set() else "kept", flush=True)
"""


def _holder(daemon: Daemon) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"GPULOCKD_SOCKET": str(daemon.runtime)},
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


async def _leases(daemon: Daemon) -> list[str]:
    return [lease["task"] for lease in (await daemon.get("/api/v1/leases")).json["leases"]]


async def test_it_says_on_one_line_when_it_is_ready() -> None:
    """Scripts and people wait for that line."""
    async with running_daemon("--pool", "here") as daemon:
        start = "gpulockd 0.1.0 ready: pool here, 2 simulated GPUs, http://127.0.0.1:"
        assert daemon.ready_line.startswith(start)
        assert daemon.ready_line.endswith(f", {daemon.runtime}/api.sock")
        ready = await daemon.get("/readyz")
        assert (ready.status, ready.json) == (200, {"status": "ready", "pool": "here", "gpus": 2})
        assert json.loads((daemon.runtime / "store.json").read_text())["pool"] == "here"
        assert await daemon.stop() == 0
        assert not (daemon.runtime / "api.sock").exists()


async def test_a_fresh_start_grants_at_once() -> None:
    """`make run` must not make anybody wait for a store that nobody has used."""
    async with running_daemon() as daemon:
        began = time.monotonic()
        asked = await daemon.open("POST", "/api/v1/leases", {"task": "first"})
        assert (await asked.said())["state"] == "granted"
        assert time.monotonic() - began < 15  # a store that must be waited for costs a session's 20 s
        assert '"nothing_lost"' in daemon.log
        await asked.aclose()


async def test_a_daemon_that_was_killed_is_followed_by_one_that_adopts_store_and_holders() -> None:
    """A daemon's crash must cost no holder its GPU, and nobody a wait."""
    async with daemon_folder() as base, running_daemon(base=base) as first:
        holder = _holder(first)
        try:
            assert holder.stdout is not None
            assert holder.stdin is not None
            await anyio.to_thread.run_sync(holder.stdout.readline)
            store = psutil.Process(_store_pid(first))
            await first.kill()
            async with running_daemon(base=base) as second:
                assert _store_pid(second) == store.pid
                assert await _leases(second) == ["holder"]
                asked = await second.open("POST", "/api/v1/leases", {"task": "next"})
                assert (await asked.said())["state"] == "granted"
                await asked.aclose()
                holder.stdin.write("\n")
                holder.stdin.flush()
                assert await anyio.to_thread.run_sync(holder.stdout.readline) == "kept\n"
        finally:
            _end(holder)


def _store_pid(daemon: Daemon) -> int:
    with redis.Redis.from_url(daemon.store_url) as store:
        return int(store.info("server")["process_id"])


async def test_a_store_that_is_killed_comes_back_with_the_offer_and_the_holders() -> None:
    """The private store is as mortal as any process."""
    async with running_daemon(config=STEADY) as daemon:
        holder = _holder(daemon)
        try:
            assert holder.stdout is not None
            assert holder.stdin is not None
            await anyio.to_thread.run_sync(holder.stdout.readline)
            os.kill(_store_pid(daemon), signal.SIGKILL)

            async def answers() -> bool:
                return (await daemon.get("/readyz")).status == 200

            await eventually(lambda: daemon.log.count('"offer.stands"') >= 2)
            await eventually(answers)
            assert await _leases(daemon) == ["holder"]
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert await anyio.to_thread.run_sync(holder.stdout.readline) == "kept\n"
        finally:
            _end(holder)


async def test_sigterm_ends_open_streams_and_is_quick() -> None:
    """A service manager waits, and a stream that nobody ends would make it wait for its kill."""
    async with daemon_folder() as base, running_daemon(base=base) as daemon:
        events = await daemon.open("GET", "/api/v1/events", tcp=True)
        holding = await daemon.open("POST", "/api/v1/leases", {"task": "a", "count": 2})
        await holding.until("granted")
        waiting = await daemon.open("POST", "/api/v1/leases", {"task": "b"})
        await waiting.until("waiting")
        began = time.monotonic()
        assert await daemon.stop() == 0
        assert time.monotonic() - began < 20
        for wire in (events, holding, waiting):
            await wire.ends()
            await wire.aclose()
        with redis.Redis.from_url(daemon.store_url) as store:
            assert store.ping()
            assert store.zcard(f"gpulockd:{{{daemon.pool}}}:sessions") == 0
            assert store.zcard(f"gpulockd:{{{daemon.pool}}}:offered") == 2


async def test_stop_store_leaves_no_process() -> None:
    """`make run` stops everything that it started."""
    async with running_daemon("--stop-store") as daemon:
        store = psutil.Process(_store_pid(daemon))
        assert await daemon.stop(signal.SIGINT) == 0
        with contextlib.suppress(psutil.NoSuchProcess):
            assert not store.is_running() or store.status() == psutil.STATUS_ZOMBIE


async def test_a_dead_holders_lease_ends_on_time_though_nobody_asks() -> None:
    """Without the timer a dead holder would keep its GPU until somebody else's script."""
    session = {"ttl": 4.0, "keepalive": 0.3, "rpc_deadline": 1.0, "margin": 0.1, "claim_window": 1.0}
    async with running_daemon(config={"session": session, "gpus": {"guard": False}}) as daemon:
        events = await daemon.open("GET", "/api/v1/events", tcp=True)
        holder = _holder(daemon)
        assert holder.stdout is not None
        await anyio.to_thread.run_sync(holder.stdout.readline)
        began = time.monotonic()
        _end(holder)
        with anyio.fail_after(30):
            while b"lock_expired" not in (await events.line() or b""):
                continue
        took_s = time.monotonic() - began
        await events.aclose()
        # The last keepalive may be 0.3 s old, and more where the holder was not let run; the rest is the ttl of 4 s.
        assert took_s > 1.0


async def test_a_second_daemon_in_the_same_folder_is_refused() -> None:
    """Two daemons would fight for one store and one socket."""
    async with running_daemon() as daemon:
        second = start_daemon(daemon.runtime.parent)
        assert await anyio.to_thread.run_sync(lambda: second.communicate(timeout=60)) is not None
        assert second.returncode == 2
        assert f"another daemon (pid {daemon.process.pid})" in daemon.log


async def test_a_taken_port_is_an_error_that_names_the_flag() -> None:
    """A daemon on another port than asked for would be looked for in vain."""
    async with running_daemon() as daemon, daemon_folder() as base:
        second = start_daemon(base, "--listen", f"127.0.0.1:{daemon.port}")
        await anyio.to_thread.run_sync(lambda: second.communicate(timeout=60))
        assert second.returncode == 2
        assert "--listen" in (base / "daemon.log").read_text()
        assert not (base / "run/store.sock").exists()


async def test_a_pool_of_another_host_is_refused_with_both_cures(valkey_server: Server, pool: str) -> None:
    """Two hosts that offer one pool would give GPU 0 of either for GPU 0."""
    shared = ("--redis", valkey_server.url, "--pool", pool)
    # The second one waits for a session's time before it gives up.
    config = {"session": {"ttl": 8.0, "keepalive": 0.5, "rpc_deadline": 2.0, "margin": 0.2}}
    async with (
        running_daemon(*shared, config=config, env={"GPULOCKD_BOOT_ID": "first", "GPULOCKD_MACHINE": "one"}) as first,
        daemon_folder() as base,
    ):
        assert first.pool == pool
        second = start_daemon(
            base, *shared, config=config, env={"GPULOCKD_BOOT_ID": "second", "GPULOCKD_MACHINE": "two"}
        )
        await anyio.to_thread.run_sync(lambda: second.communicate(timeout=60))
        said = (base / "daemon.log").read_text()
        assert second.returncode == 2
        assert "--pool NAME" in said
        assert "stop that daemon" in said


async def test_an_external_store_is_told_to_local_programs(valkey_server: Server, pool: str) -> None:
    """A program on the host needs no configuration of its own."""
    async with running_daemon("--redis", valkey_server.url, "--pool", pool, config=STEADY) as daemon:
        said = hello(str(daemon.runtime))
        assert said is not None
        assert said.pop("boot_id") == boot_id()
        assert said.pop("state_dir") == str(daemon.state)
        assert isinstance(said.pop("at_ms"), int)
        assert said == {"pool": pool, "store": valkey_server.url, "guarded": True, "version": "0.1.0"}
        assert json.loads((daemon.runtime / "store.json").read_text()) == {"pool": pool, "redis": "external"}
        assert not (daemon.runtime / "store.sock").exists()


async def test_the_guard_socket_answers_every_line_and_survives_wrong_ones() -> None:
    """Any program may connect, also a broken one."""
    async with running_daemon() as daemon:
        path = daemon.runtime / "guard.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        for line in (b"[]\n", b"{\n", b'{"verb":"x"}\n'):
            said = _say(path, line)
            assert "not understood" in said["error"]
            assert '"hello"' in said["hint"]
        assert "65536 bytes" in _say(path, b"x" * 70_000 + b"\n")["error"]
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(str(path))
            door.sendall(b"half a li")
        assert _say(path, b'{"verb": "hello"}\n')["pool"] == "default"


def _say(path: Path, line: bytes) -> dict[str, str]:
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(30)
        door.connect(str(path))
        door.sendall(line)
        answer: dict[str, str] = json.loads(door.makefile("rb").readline())
    return answer


async def test_the_private_store_listens_on_no_tcp_port() -> None:
    """Whoever reaches the store owns all locks."""
    async with running_daemon() as daemon:
        store = psutil.Process(_store_pid(daemon))
        assert not [c for c in store.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        ours = [c for c in psutil.Process(daemon.process.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.port for c in ours} == {daemon.port}
        assert {c.laddr.ip for c in ours} <= {"127.0.0.1", "::1"}


async def test_an_idle_daemon_hardly_wakes() -> None:
    """It runs on every GPU host, all the time."""
    async with running_daemon() as daemon:
        await anyio.sleep(1)
        per_s = float("inf")
        for _ in range(4):  # a machine that is busy makes it begin late, or look again
            before, began_s = _switches(daemon.process.pid), time.monotonic()
            await anyio.sleep(6.0)
            per_s = (_switches(daemon.process.pid) - before) / (time.monotonic() - began_s)
            if per_s < 15:
                break
        # One keepalive and its echo, and one look at the store's file, every 5 s.
        # The files of simulated cards are looked at each second, the cards every 5 s, each in its own thread.
        assert per_s < 15, f"{per_s:.1f} voluntary switches/s"


def _switches(pid: int) -> int:
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # a thread that has ended
            total += int(status.read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return total


async def test_sighup_reads_the_configuration_again_and_ends_nothing() -> None:
    """The default action of that signal would end the daemon."""
    async with running_daemon() as daemon:
        daemon.process.send_signal(signal.SIGHUP)
        await eventually(lambda: "config.reloaded" in daemon.log)
        assert (await daemon.get("/livez")).status == 200


async def test_readiness_and_end_are_told_to_the_service_manager(tmp_path_factory: pytest.TempPathFactory) -> None:
    """systemd starts what needs the daemon after READY, and restarts it when the watchdog is silent."""
    async with daemon_folder() as base:
        with _service_manager(base / "notify") as said:
            env = {"NOTIFY_SOCKET": str(base / "notify"), "WATCHDOG_USEC": "200000"}
            async with running_daemon(base=base, env=env) as daemon:
                await eventually(lambda: len(said) >= 3)
                assert said[0].startswith(b"READY=1\nSTATUS=gpulockd")
                assert said[1:3] == [b"WATCHDOG=1", b"WATCHDOG=1"]
                await daemon.stop()
            await eventually(lambda: b"STOPPING=1" in said)


@contextlib.contextmanager
def _service_manager(path: Path) -> Iterator[list[bytes]]:
    """What is said on that socket. It is read all the time: the kernel keeps ten messages and drops the rest."""
    said: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))

        def hear() -> None:
            while (word := manager.recv(4096)) != b"END":
                said.append(word)

        hearing = threading.Thread(target=hear)
        hearing.start()
        try:
            yield said
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
                end.sendto(b"END", str(path))
            hearing.join()
