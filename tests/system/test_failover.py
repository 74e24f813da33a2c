"""A failover that loses the last writes, with a real Sentinel: the guard knows what the new master has forgotten."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest
import redis

from tests.daemons import eventually, running_daemon
from tests.states import until
from tests.system.holders import holders
from tests.system.test_guard import CONFIG, queued

SERVER = shutil.which("redis-server")

pytestmark = [
    pytest.mark.skipif(SERVER is None, reason="needs Debian's redis-server for a Sentinel"),
    pytest.mark.timeout(400),  # a Sentinel that was stopped for two seconds does nothing for thirty
]


def free_port() -> int:
    """A TCP port that nobody uses now, and that the kernel gives to no outgoing connection meanwhile."""
    for _ in range(100):
        port = random.randrange(10_000, 32_000)
        with socket.socket() as door, suppress(OSError):
            door.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Trio:
    """A master, its replica, and a Sentinel that watches them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("one", "two", "sentinel")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self._run("one", "--save", "")
        of_one = ("--replicaof", "127.0.0.1", str(self.ports["one"]))
        self._run("two", "--save", "", *of_one, "--repl-diskless-sync-delay", "0")
        until_up = time.monotonic() + 60
        while self.client("two").info("replication").get("master_link_status") != "up":
            assert time.monotonic() < until_up
            time.sleep(0.05)
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {self.ports['sentinel']}\nsentinel monitor pool 127.0.0.1 {self.ports['one']} 1\n"
            "sentinel down-after-milliseconds pool 800\nsentinel failover-timeout pool 5000\n"
        )
        assert SERVER is not None
        self.processes["sentinel"] = subprocess.Popen([SERVER, str(config), "--sentinel"], stdout=subprocess.DEVNULL)
        self._wait("sentinel")

    def _run(self, name: str, *options: str) -> None:
        assert SERVER is not None
        folder = self.folder / name
        folder.mkdir()
        command = [SERVER, "--port", str(self.ports[name]), "--dir", str(folder), *options]
        self.processes[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._wait(name)

    def _wait(self, name: str) -> None:
        until_up = time.monotonic() + 60
        while True:
            try:
                self.client(name).ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < until_up
                time.sleep(0.05)

    def client(self, name: str) -> redis.Redis:
        return redis.Redis(port=self.ports[name], socket_timeout=2)

    def knows_replica(self) -> bool:
        """Whether the Sentinel could fail over."""
        return bool(self.client("sentinel").execute_command("SENTINEL", "REPLICAS", "pool"))

    def is_replicated(self) -> bool:
        """Whether the replica has heard all that the master has said when it was asked."""
        said = self.client("one").info("replication")["master_repl_offset"]
        until_heard = time.monotonic() + 30
        while self.client("two").info("replication")["slave_repl_offset"] < said:
            if time.monotonic() > until_heard:
                return False
            time.sleep(0.01)
        return True

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.ports['sentinel']}/pool"

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextmanager
def trio(folder: Path) -> Iterator[Trio]:
    servers = Trio(folder)
    try:
        servers.start()
        yield servers
    finally:
        servers.end()


async def test_a_failover_that_forgets_a_lease_lets_nobody_meet_its_holder(tmp_path: Path) -> None:
    """The new master has never heard of the lease; the guard has, and tokens must not be given twice."""
    with trio(tmp_path) as servers:
        await eventually(servers.knows_replica, 60)
        async with running_daemon("--redis", servers.url, config=CONFIG) as daemon:
            with holders(tmp_path / "h", daemon, GPULOCKD_REDIS_URL=servers.url) as start:
                await until(lambda: servers.client("two").dbsize() > 0)
                before = start.start("before")
                await before.is_in()
                before.leave()
                await before.is_out()
                await until(servers.is_replicated)
                # From here on the replica hears nothing: what is granted now is lost with the master.
                servers.processes["two"].send_signal(signal.SIGSTOP)
                first = start.start("first")
                token = await first.is_in()
                second = start.start("second")
                await queued(daemon, 1)
                servers.processes["one"].kill()
                servers.processes["two"].send_signal(signal.SIGCONT)

                def promoted() -> bool:
                    with suppress(redis.RedisError):
                        return bool(servers.client("two").info("replication")["role"] == "master")
                    return False

                await until(promoted, 150)
                await anyio.sleep(8)
                assert second.said("in") is None
                assert first.said("lost") is None
                first.leave()
                await first.is_out()
                assert first.said("lost") is None
                await second.is_in(90)
                assert int(second.said("in") or 0) > token
