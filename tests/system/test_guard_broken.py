"""What an opponent once broke: each of these let two meet, killed an innocent, or kept a gpu from everybody."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import AF_UNIX, SHUT_RDWR, SOCK_STREAM, socket

import anyio
import psutil
import pytest

from tests.daemons import Daemon, daemon_folder, running_daemon
from tests.states import until
from tests.system.commands import ROOT, ask, clean_env, is_followed
from tests.system.holders import holders
from tests.system.test_guard import CONFIG, PATIENT, SOON_S, queued, store_of

SPEAKS = """
import socket, sys, time
with socket.socket(socket.AF_UNIX) as door:
    door.connect(sys.argv[1])
    for line in sys.argv[2:]:
        door.sendall(line.encode() + b"\\n")
    print(door.recv(9999).decode(), flush=True)
    time.sleep(60)
"""

HOLDS_WITH_A_CHILD = """
import os, sys, time
from pathlib import Path
from gpulockd import gpu_lock
folder = Path(sys.argv[1])
with gpu_lock("gpu_lock:0"):
    child = os.fork()
    if child == 0:
        with gpu_lock("gpu_lock:0"):
            (folder / "joined").touch()
            time.sleep(300)
        os._exit(0)
    while not (folder / "joined").exists():
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    time.sleep(0.5)
(folder / "left").touch()
time.sleep(300)
"""

LEAVES_AND_LIVES_ON = """
import asyncio, sys
from pathlib import Path
from gpulockd import gpu_lock
folder = Path(sys.argv[1])
async def main():
    async with gpu_lock("gpu_lock:0"):
        (folder / "in").touch()
        while not (folder / "leave").exists():
            await asyncio.sleep(0.05)
    (folder / "left").touch()
    await asyncio.sleep(300)
asyncio.run(main())
"""


@contextmanager
def program(daemon: Daemon, text: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of its own that finds `daemon`; killed at the end."""
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    with subprocess.Popen([sys.executable, "-c", text, *words], env=env, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


async def lease_of(daemon: Daemon) -> dict[str, object]:
    """The one lease there is."""
    (lease,) = ask(daemon, "leases")
    return dict(lease)


async def test_a_child_that_stays_when_its_revoked_parent_leaves_is_ended(tmp_path: Path) -> None:
    """The parent's word is not its child's: the card is in use still."""
    async with running_daemon(config=CONFIG | {"settle": {"timeout": 60, "grace": 6}}) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", "forks")
            await first.is_in()
            await until(lambda: first.said("child"))
            second = start.start("second")
            await queued(daemon, 1)
            await until(lambda: is_followed(daemon, int(first.said("child") or 0)))
            await daemon.ask("DELETE", f"/api/v1/leases/{(await lease_of(daemon))['id']}")
            await second.is_in(60)
            assert first.said("out") is not None


async def test_a_parent_that_leaves_in_order_lives_on_though_its_child_was_killed_inside(tmp_path: Path) -> None:
    """Whoever has given the lease back is not of the run that is ended."""
    async with running_daemon(config=CONFIG) as daemon:
        with program(daemon, HOLDS_WITH_A_CHILD, str(tmp_path)) as parent:
            await until((tmp_path / "left").exists)
            with holders(tmp_path / "h", daemon) as start:
                await start.start("next").is_in()
            await anyio.sleep(2)
            assert parent.poll() is None


@pytest.mark.timeout(240)
async def test_a_winner_that_was_stopped_beyond_its_claim_is_neither_killed_nor_forgotten(tmp_path: Path) -> None:
    """Its late admit belongs to a claim that has lapsed; its next grant has the same ticket."""
    async with running_daemon(config=CONFIG) as daemon:
        for number in range(3):
            with holders(tmp_path / f"h{number}", daemon) as start:
                first = start.start("first")
                await first.is_in()
                winner = start.start("winner", "deaf")
                await queued(daemon, 1)
                await anyio.sleep(0.5)
                winner.send(signal.SIGSTOP)
                first.leave()
                await first.is_out()
                await anyio.sleep(2.6)
                winner.send(signal.SIGCONT)
                await winner.is_in()
                third = start.start("third")
                await queued(daemon, 1)
                await anyio.sleep(1)
                assert winner.process.poll() is None
                assert third.said("in") is None
                await daemon.ask("DELETE", f"/api/v1/leases/{(await lease_of(daemon))['id']}")
                await third.is_in(30)


async def test_nobody_takes_over_a_lease_by_its_id(tmp_path: Path) -> None:
    """Ids stand in every listing; a higher token proves nothing."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            token = await first.is_in()
            words = {"id": (await lease_of(daemon))["id"], "token": token + 1, "gpus": ["gpu_lock:1"]}
            line = json.dumps({"verb": "admit", "session": "liar", "lease": words})
            with program(daemon, SPEAKS, str(daemon.runtime / "guard.sock"), line) as liar:
                assert liar.stdout is not None
                assert b"admitted" not in liar.stdout.readline(), "it waits for the ledger at most"
                await anyio.sleep(3)
                assert first.process.poll() is None
                assert first.said("lost") is None


async def test_a_lease_from_before_the_guard_is_its_own_sessions_alone(tmp_path: Path) -> None:
    """Another's hello must neither claim it nor leave it."""
    async with daemon_folder() as base:
        async with running_daemon(config=CONFIG | {"gpus": {"guard": False}}, base=base) as daemon:
            with holders(tmp_path / "h", daemon) as start:
                first = start.start("first", "deaf")
                token = await first.is_in()
                id = (await lease_of(daemon))["id"]
                await daemon.stop()
                async with running_daemon(config=CONFIG, base=base) as guarded:
                    second = start.start("second")
                    await queued(guarded, 1)
                    words = {"id": id, "token": token, "gpus": ["gpu_lock:0"]}
                    hello = json.dumps({"verb": "hello", "session": "liar", "held": [words]})
                    leave = json.dumps({"verb": "leave", "lease": id, "token": token})
                    with program(guarded, SPEAKS, str(guarded.runtime / "guard.sock"), hello, leave) as liar:
                        assert liar.stdout is not None
                        liar.stdout.readline()
                        await guarded.ask("DELETE", f"/api/v1/leases/{id}")
                        await anyio.sleep(3)
                        assert second.said("in") is None or first.process.poll() is not None


async def test_a_worker_whose_release_nobody_remembers_is_left_alone(tmp_path: Path) -> None:
    """The daemon was down for longer than a tombstone lives; the worker has long been at something else."""
    async with daemon_folder() as base:
        async with running_daemon(config=CONFIG, base=base) as daemon:
            with program(daemon, LEAVES_AND_LIVES_ON, str(tmp_path)) as worker:
                await until((tmp_path / "in").exists)
                await daemon.kill()
                (tmp_path / "leave").touch()
                await until((tmp_path / "left").exists)
                with store_of(daemon) as store:
                    await until(lambda: store.keys("*done:*"))
                    store.delete(*store.keys("*done:*"))
                async with running_daemon(config=CONFIG, base=base) as again:
                    with holders(tmp_path / "h", again) as start:
                        await start.start("next").is_in(30)
                    assert worker.poll() is None


async def test_a_death_while_the_pool_is_frozen_costs_no_more_than_the_freeze(tmp_path: Path) -> None:
    """What could not be compared then is compared when the pool opens."""
    async with running_daemon(config=CONFIG | {"settle": {"timeout": 60, "grace": 1}}) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            with store_of(daemon) as store:
                store.flushall()
            await anyio.sleep(0.3)
            first.send(signal.SIGKILL)
            await second.is_in(30)


class Gate:
    """A way to the store that can be held up."""

    def __init__(self, path: str, target: str) -> None:
        self.open = threading.Event()
        self.open.set()
        self._target = target
        self._ends: list[socket] = []
        self._listener = socket(AF_UNIX, SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket(AF_UNIX, SOCK_STREAM)
                far.connect(self._target)
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket, other: socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self.open.wait()
                other.sendall(data)

    def close(self) -> None:
        self.open.set()
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(SHUT_RDWR)
            end.close()


async def test_a_guard_that_is_stopped_vouches_for_nobody(tmp_path: Path) -> None:
    """Its sockets stay open while its session ends: a holder that is cut off too must stop believing before that."""
    async with running_daemon(config=CONFIG) as daemon:
        path = str(daemon.runtime / "gate.sock")
        gate = Gate(path, str(daemon.runtime / "store.sock"))
        try:
            with holders(tmp_path / "h", daemon, GPULOCKD_POOL=daemon.pool) as start:
                first = start.start("first", GPULOCKD_REDIS_URL=f"unix://{path}")
                await first.is_in()
                second = start.start("second", GPULOCKD_REDIS_URL=daemon.store_url)
                await queued(daemon, 1)
                daemon.process.send_signal(signal.SIGSTOP)
                gate.open.clear()
                try:
                    await until(lambda: first.said("lost"), 40)
                finally:
                    daemon.process.send_signal(signal.SIGCONT)
                gate.open.set()
                await second.is_in(40)
        finally:
            gate.close()


async def test_many_sessions_of_one_connection_slow_nobody(tmp_path: Path) -> None:
    """The end of each costs a script; a connection speaks for few."""
    async with running_daemon(config=PATIENT) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            hellos = [json.dumps({"verb": "hello", "session": f"s{number}"}) for number in range(2000)]
            with program(daemon, SPEAKS, str(daemon.runtime / "guard.sock"), *hellos) as flood:
                assert flood.stdout is not None
                flood.stdout.readline()
                psutil.Process(flood.pid).kill()
            first.send(signal.SIGKILL)
            await second.is_in(SOON_S)
