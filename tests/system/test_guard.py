"""The guard before real processes: deaths, stops, amnesia and lies, with a flock as the card."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import redis

from gpulockd.hardware.processes.identity import alive, identify
from tests.configured import set_live
from tests.daemons import Daemon, daemon_folder, running_daemon, start_daemon
from tests.states import until
from tests.system.commands import ask, is_followed, lives
from tests.system.holders import INSIDE, Holder, holders

CONFIG: dict[str, Any] = {
    "session": {"ttl": 10, "keepalive": 1, "rpc_deadline": 2, "margin": 0.5, "claim_window": 2, "guard_gone_after": 90},
    "settle": {"timeout": 10, "grace": 1},
}
"""A dead process counts as gone after 10 s without a guard."""

PATIENT: dict[str, Any] = CONFIG | {"session": CONFIG["session"] | {"ttl": 60, "rpc_deadline": 5}}
"""A dead process counts as gone after a minute without a guard, so what happens sooner is the guard's."""

SOON_S = 30.0
"""Well under what would happen without a guard, however slow the machine is."""


def store_of(daemon: Daemon) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(daemon.runtime / "store.sock"))


async def queued(daemon: Daemon, count: int) -> None:
    """Wait until so many stand in the queue."""
    await until(lambda: len(ask(daemon, "queue")) >= count)


def is_granted(daemon: Daemon) -> bool:
    """Whether a lease stands in the ledger, daemon or not."""
    with store_of(daemon) as store:
        cores = [store.hget(name, "core") or b"" for name in store.keys("gpulockd:*:ticket:*")]
    return any(core.startswith(b"held ") for core in cores)


async def follows(first: Holder, second: Holder, within_s: float = SOON_S) -> float:
    """How long it takes until the second is in (in seconds)."""
    began = time.monotonic()
    await second.is_in(within_s)
    return time.monotonic() - began


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_the_next_begins_at_once_when_a_holder_is_killed(tmp_path: Path, mode: str) -> None:
    """Without a guard everybody would wait for the session's end."""
    async with running_daemon(config=PATIENT) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", mode)
            await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            first.send(signal.SIGKILL)
            await follows(first, second)
            assert int(second.said("in") or 0) > int(first.said("in") or 0)


async def test_a_waiter_that_is_killed_is_passed_over_at_once(tmp_path: Path) -> None:
    """The one behind it must not wait for a dead process's claim."""
    async with running_daemon(config=PATIENT) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first, dead, third = start.start("first"), None, None
            await first.is_in()
            dead = start.start("dead")
            await queued(daemon, 1)
            third = start.start("third")
            await queued(daemon, 2)
            dead.send(signal.SIGKILL)
            dead.process.wait()
            first.leave()
            await third.is_in(SOON_S)


async def test_a_child_that_goes_on_alone_is_ended_before_the_next_begins(tmp_path: Path) -> None:
    """A forked child has the card still when its parent has died: the next one would meet it there."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", "forks")
            await first.is_in()
            await until(lambda: first.said("child"))
            second = start.start("second")
            await queued(daemon, 1)
            await until(lambda: is_followed(daemon, int(first.said("child") or 0)))
            first.send(signal.SIGKILL)
            await second.is_in()
            child = identify(int(first.said("child") or 0))
            assert child is None or not alive(child)


async def test_a_stopped_holder_whose_lease_expired_is_killed_before_the_next_begins(tmp_path: Path) -> None:
    """It cannot leave by itself, and when it wakes late it must touch nothing."""
    async with running_daemon(config=PATIENT) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", wish="{'lock_timeout': 15, 'heartbeat': 'manual'}")
            await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            first.send(signal.SIGSTOP)
            await second.is_in(60)
            assert first.process.wait(30) in (-signal.SIGTERM, -signal.SIGKILL)
            assert first.said("out") is None


async def test_a_holder_that_heeds_nothing_is_killed_and_one_that_leaves_is_not(tmp_path: Path) -> None:
    """A revoked body that ends in time costs its process nothing."""
    async with running_daemon(config=PATIENT | {"settle": {"timeout": 60, "grace": 20}}) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            await first.is_in()
            second = start.start("second", "deaf")
            await queued(daemon, 1)
            (lease,) = ask(daemon, "leases")
            await daemon.ask("DELETE", f"/api/v1/leases/{lease['id']}")
            await second.is_in(SOON_S)
            await first.is_out()
            assert "LeaseLost" in (first.said("lost") or "")
            assert first.process.wait(30) == 0
            assert (await set_live(daemon, {"settle": {"grace": 1}})).status == 200
            third = start.start("third")
            await queued(daemon, 1)
            (lease,) = ask(daemon, "leases")
            await daemon.ask("DELETE", f"/api/v1/leases/{lease['id']}")
            await third.is_in(SOON_S)
            assert second.process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("stopped", [False, True])
async def test_holders_keep_their_card_through_an_emptied_store(tmp_path: Path, stopped: bool) -> None:
    """The fence knows who is in, whatever the ledger has forgotten; a stopped process cannot even say so itself."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            token = await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            if stopped:
                first.send(signal.SIGSTOP)
            with store_of(daemon) as store:
                store.flushall()
            await anyio.sleep(6)
            assert second.said("in") is None
            first.send(signal.SIGCONT)
            await anyio.sleep(1)
            assert first.said("lost") is None
            assert first.said("out") is None
            first.leave()
            await second.is_in(30)
            assert int(second.said("in") or 0) > token


async def test_a_store_that_is_away_for_long_costs_no_holder_its_lease(tmp_path: Path) -> None:
    """Belief in Redis would be over after seven seconds; the guard stands for the holder."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            await first.is_in()
            with store_of(daemon) as store:
                pid = store.info("server")["process_id"]
            os.kill(pid, signal.SIGSTOP)
            try:
                await anyio.sleep(12)
                assert first.said("lost") is None
            finally:
                os.kill(pid, signal.SIGCONT)
            await anyio.sleep(1)
            assert first.said("lost") is None
            first.leave()
            await first.is_out()
            assert first.said("lost") is None


async def test_a_daemon_that_was_killed_knows_whom_it_has_let_in(tmp_path: Path) -> None:
    """Deaths while it was down are found, living holders are neither disturbed nor passed."""
    async with daemon_folder() as base:
        async with running_daemon(config=PATIENT, base=base) as daemon:
            with holders(tmp_path / "h", daemon) as start:
                first = start.start("first")
                await first.is_in()
                second = start.start("second")
                await queued(daemon, 1)
                await daemon.kill()
                async with running_daemon(config=PATIENT, base=base) as again:
                    await anyio.sleep(2)
                    assert second.said("in") is None
                    assert first.said("lost") is None
                    await again.kill()
                    first.send(signal.SIGKILL)
                    first.process.wait()
                    async with running_daemon(config=PATIENT, base=base):
                        await second.is_in(SOON_S)


@pytest.mark.parametrize("it_dies", ["before the daemon is back", "after that", "and its pid is a stranger's"])
async def test_who_was_granted_without_the_daemon_and_dies_keeps_nobody_waiting(tmp_path: Path, it_dies: str) -> None:
    """It never spoke to a guard: only the ledger knows whose lease that is."""
    async with daemon_folder() as base:
        async with running_daemon(config=PATIENT, base=base) as daemon:
            await daemon.kill()
        with holders(tmp_path / "h", daemon) as start:
            dead, stranger = start.start("dead"), None
            await until(lambda: is_granted(daemon))
            if it_dies == "after that":
                dead.send(signal.SIGSTOP)  # or it would name itself to the guard
            else:
                dead.send(signal.SIGKILL)
                dead.process.wait()
            if it_dies.startswith("and"):
                stranger = with_pid(dead.process.pid)
            try:
                async with running_daemon(config=PATIENT, base=base):
                    if it_dies == "after that":
                        await anyio.sleep(0.5)  # a new daemon looks into the ledger soon
                        dead.send(signal.SIGKILL)
                    await start.start("next").is_in(SOON_S)
                    assert stranger is None or stranger.poll() is None
            finally:
                if stranger is not None:
                    stranger.kill()
                    stranger.wait()


async def test_the_store_is_emptied_while_the_daemon_is_down(tmp_path: Path) -> None:
    """Nobody is granted until the guard has said who is in, or has been away for long."""
    async with daemon_folder() as base:
        async with running_daemon(config=CONFIG, base=base) as daemon:
            with holders(tmp_path / "h", daemon) as start:
                first = start.start("first")
                await first.is_in()
                second = start.start("second")
                await queued(daemon, 1)
                await daemon.kill()
                with store_of(daemon) as store:
                    store.flushall()
                await anyio.sleep(12)  # longer than a session lives
                assert second.said("in") is None
                async with running_daemon(config=CONFIG, base=base):
                    await anyio.sleep(4)
                    assert second.said("in") is None
                    assert first.said("lost") is None
                    first.leave()
                    await second.is_in(30)


async def test_a_store_that_was_rolled_back_costs_no_holder_its_lease(tmp_path: Path) -> None:
    """An older append-only file loads whole too; what it lacks, the guard knows."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            before = start.start("before")
            await before.is_in()
            before.leave()
            await before.is_out()
            with store_of(daemon) as store:
                pid = store.info("server")["process_id"]
                folder = Path(store.config_get("dir")["dir"])
            (files,) = (path for path in folder.iterdir() if path.is_dir())
            os.kill(pid, signal.SIGSTOP)  # or a line that is being written would be copied in part
            await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
            shutil.copytree(files, tmp_path / "older")
            os.kill(pid, signal.SIGCONT)
            first = start.start("first")
            token = await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            daemon.process.send_signal(signal.SIGSTOP)  # or it would start the store again before the file is changed
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not lives(pid))
            shutil.rmtree(files)
            shutil.copytree(tmp_path / "older", files)
            daemon.process.send_signal(signal.SIGCONT)
            await anyio.sleep(8)
            assert second.said("in") is None
            assert first.said("lost") is None
            first.leave()
            await second.is_in(30)
            assert int(second.said("in") or 0) > token


async def test_a_daemon_that_is_stopped_during_a_hand_off_delays_it_only(tmp_path: Path) -> None:
    """Nobody goes round a guard that does not answer, and nobody waits for ever."""
    async with running_daemon(config=PATIENT) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            daemon.process.send_signal(signal.SIGSTOP)
            try:
                first.leave()
                await first.is_out()
                await anyio.sleep(3)
                assert second.said("in") is None
            finally:
                daemon.process.send_signal(signal.SIGCONT)
            await second.is_in(SOON_S)


async def test_a_release_that_never_reached_the_ledger_is_made_up_for(tmp_path: Path) -> None:
    """Whoever has left the card must not keep it by a lost message."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", "mute")
            await first.is_in()
            await start.start("second").is_in()
            # Nobody has killed it; it ends by itself as soon as it hears that its lease has ended.
            assert first.process.poll() in (None, 0)


async def test_without_the_socket_a_program_waits_and_names_the_cure(tmp_path: Path) -> None:
    """A container that forgot the mount must not go round the fence; once the guard has signed off it may begin."""
    async with running_daemon(config=CONFIG) as daemon:
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        env = {"GPULOCKD_SOCKET": str(hidden), "GPULOCKD_REDIS_URL": daemon.store_url, "GPULOCKD_POOL": daemon.pool}
        (daemon.runtime / "guard.sock").rename(daemon.runtime / "elsewhere.sock")
        with holders(tmp_path / "h", daemon) as start:
            start.env = env
            one = start.start("one")
            await until(lambda: "mount the daemon's folder" in one.log)
            assert one.said("in") is None
            await daemon.stop()
            await one.is_in()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root for a pid namespace of its own")
async def test_a_holder_in_its_own_pid_namespace_is_known_and_its_death_is_heard(tmp_path: Path) -> None:
    """Containers mount the folder; the kernel names their processes to the daemon."""
    async with running_daemon(config=PATIENT) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", prefix=INSIDE)
            await first.is_in()
            second = start.start("second")
            await queued(daemon, 1)
            (child,) = psutil.Process(first.process.pid).children()
            child.send_signal(signal.SIGKILL)
            await second.is_in(SOON_S)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root for namespaces of its own")
async def test_two_containers_without_the_socket_use_one_pool(tmp_path: Path) -> None:
    """By its host name alone each container would get a pool of its own, and GPU 0 twice.

    A guard would make them wait for the socket, so this is a host whose daemon does not guard (`gpus.guard: false`).
    """
    async with running_daemon(config=CONFIG | {"gpus": {"guard": False}}) as daemon:
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        with holders(tmp_path / "h", daemon) as start:
            start.env = {"GPULOCKD_REDIS_URL": daemon.store_url, "GPULOCKD_SOCKET": str(hidden)}
            inside = (*INSIDE, "--uts", "sh", "-c", 'hostname "$0"; exec "$@"')
            first = start.start("first", prefix=(*inside, "box-1"))
            await first.is_in()
            second = start.start("second", prefix=(*inside, "box-2"))
            await queued(daemon, 1)
            assert second.said("in") is None
            first.leave()
            await second.is_in()
            (lease,) = ask(daemon, "leases")
            assert lease["host"] == "box-2"


async def test_what_a_program_without_the_socket_left_in_the_ledger_ends_with_its_session(tmp_path: Path) -> None:
    """A guard that found a lease in the ledger must not keep it alive for a process that it cannot see."""
    async with daemon_folder() as base:
        async with running_daemon(config=CONFIG, base=base) as daemon:
            hidden = tmp_path / "hidden"
            hidden.mkdir()
            lonely = {"GPULOCKD_SOCKET": str(hidden), "GPULOCKD_REDIS_URL": daemon.store_url}
            (daemon.runtime / "guard.sock").rename(daemon.runtime / "elsewhere.sock")
            with holders(tmp_path / "h", daemon) as start:
                # In a pid namespace of its own, so that what it says of itself means nobody here.
                inside = INSIDE if os.getuid() == 0 else ()
                one = start.start("one", prefix=inside, **lonely)
                await until(lambda: ask(daemon, "leases"))
                await daemon.kill()
                for process in psutil.Process(one.process.pid).children():
                    process.kill()
                one.send(signal.SIGKILL)
                async with running_daemon(config=CONFIG, base=base):
                    await start.start("two").is_in(60)


class Liar:
    """Somebody who speaks to the guard by hand."""

    def __init__(self, daemon: Daemon) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(30)
        self._socket.connect(str(daemon.runtime / "guard.sock"))
        self._lines = self._socket.makefile("rb")

    def say(self, **words: Any) -> None:
        self._socket.sendall(json.dumps(words).encode() + b"\n")

    def hear(self) -> Any:
        return json.loads(self._lines.readline())

    def close(self) -> None:
        self._socket.close()


async def test_lies_on_the_socket_change_nothing(tmp_path: Path) -> None:
    """Whoever may write to the socket may not end, imitate or block others for long."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            token = await first.is_in()
            (lease,) = ask(daemon, "leases")
            second = start.start("second")
            await queued(daemon, 1)
            with store_of(daemon) as store:
                sessions = [name.decode() for name in store.zrange(f"gpulockd:{{{daemon.pool}}}:sessions", 0, -1)]
            liar = Liar(daemon)
            liar.say(verb="leave", lease=lease["id"], token=token)
            for session in sessions:
                liar.say(verb="hello", session=session, held=[], known=[], as_of=token + 10)
                liar.hear()
            # A lease that nobody was granted, with a token that would shut out everybody.
            words = {"id": "f" * 32, "token": (1 << 52), "gpus": ["gpu_lock:0", "gpu_lock:1"], "exclusive": True}
            liar.say(verb="admit", session="liar", lease=words)
            assert "refused" in liar.hear()
            liar.say(verb="admit", session="liar", lease=words | {"token": token + 1_000_000})
            assert "waits" in liar.hear()
            await anyio.sleep(1)
            assert second.said("in") is None
            assert first.said("lost") is None
            first.leave()
            await second.is_in()
            liar.close()


async def test_a_made_up_lease_on_a_free_gpu_is_thrown_out(tmp_path: Path) -> None:
    """The fence compares itself with the ledger: what the ledger never granted does not stay."""
    async with running_daemon(config=CONFIG) as daemon:
        liar = Liar(daemon)
        token = round(time.time() * 1000) + 10**8
        words = {"id": "f" * 32, "token": token, "gpus": ["gpu_lock:0"], "exclusive": True}
        liar.say(verb="admit", session="liar", lease=words)
        assert "admitted" in liar.hear()
        with holders(tmp_path / "h", daemon) as start:
            assert await start.start("one").is_in() < token
        liar.close()


async def test_nonsense_on_the_socket_is_answered_or_ended(tmp_path: Path) -> None:
    """No peer can end the guard or make it grow."""
    async with running_daemon(config=CONFIG) as daemon:
        for nonsense in (b"", b"{}", b"[1]", b"\xff\xfe", b'{"verb": "admit"}', b'{"verb": 7}', b"[" * 40_000):
            liar = Liar(daemon)
            liar._socket.sendall(nonsense + b"\n")
            assert "error" in liar.hear(), nonsense
            liar.close()
        liar = Liar(daemon)
        with suppress(OSError):
            liar._socket.sendall(b"x" * 200_000)
        liar.close()
        with holders(tmp_path / "h", daemon) as start:
            await start.start("one").is_in()


async def test_a_second_daemon_for_the_same_pool_refuses(tmp_path: Path) -> None:
    """Two fences are none; the cure is in the text."""
    async with running_daemon(config=CONFIG) as daemon, daemon_folder() as other:
        command = ["--redis", daemon.store_url, "--pool", daemon.pool]
        process = start_daemon(other, *command, config=CONFIG)
        try:
            code = await anyio.to_thread.run_sync(lambda: process.wait(60))
        finally:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()
        assert code == 2
        assert "--pool" in (other / "daemon.log").read_text()


async def test_programs_that_held_before_the_guard_came_are_taken_over(tmp_path: Path) -> None:
    """An offer ends no lease; from its hello on a holder is guarded: its death is heard, and its child is ended."""
    async with daemon_folder() as base:
        async with running_daemon(config=PATIENT, base=base) as daemon:
            with holders(tmp_path / "h", daemon) as start:
                await daemon.stop()
                first = start.start("first", "forks")
                await first.is_in()
                async with running_daemon(config=PATIENT, base=base) as again:
                    second = start.start("second")
                    await queued(again, 1)
                    await until(lambda: is_followed(again, int(first.said("child") or 0)))
                    assert second.said("in") is None
                    first.send(signal.SIGKILL)
                    await second.is_in(SOON_S)


async def test_a_reused_pid_is_not_signalled(tmp_path: Path) -> None:
    """A stranger that got a dead holder's number while the daemon was down must not even notice."""
    async with daemon_folder() as base:
        async with running_daemon(config=PATIENT, base=base) as daemon:
            with holders(tmp_path / "h", daemon) as start:
                first = start.start("first")
                await first.is_in()
                second = start.start("second")
                await queued(daemon, 1)
                await daemon.kill()
                first.send(signal.SIGKILL)
                first.process.wait()
                stranger = with_pid(first.process.pid)
                try:
                    async with running_daemon(config=PATIENT, base=base):
                        await second.is_in(SOON_S)
                        await anyio.sleep(1)
                        assert stranger.poll() is None
                finally:
                    stranger.kill()
                    stranger.wait()


def with_pid(pid: int) -> subprocess.Popen[bytes]:
    """A process that has this very number."""
    if os.getuid() != 0:
        pytest.skip("needs root to choose the next pid")
    for _ in range(200):
        with suppress(OSError):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "120"])
        if process.pid == pid:
            assert identify(pid) is not None
            return process
        process.kill()
        process.wait()
    pytest.skip("the pid could not be had again")
