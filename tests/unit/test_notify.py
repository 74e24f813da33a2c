"""Words to and from the service manager: a real socket and real descriptors stand in for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from gpulockd.daemon import fdstore
from gpulockd.daemon.credentials import API_TOKEN, credential
from gpulockd.daemon.kept import Kept, name_of, process_of
from gpulockd.daemon.notify import notify, reloading, watchdog_interval_s
from gpulockd.daemon.process import reloaded
from gpulockd.daemon.pulse import Pulse, Pulses, healthy, overdue
from gpulockd.errors import ConfigError
from gpulockd.hardware.processes.identity import Process, identify
from tests.states import until

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield made


def test_without_a_service_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most daemons run on a terminal."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False
    assert fdstore.forget("holder") is False


def test_a_full_queue_does_not_stop_the_daemon(manager: socket.socket) -> None:
    """A manager that hangs must not hang us."""
    while notify("WATCHDOG=1"):
        continue
    assert manager.recv(100) == b"WATCHDOG=1"


def test_a_stored_descriptor_arrives_with_its_name_and_is_the_same_file(manager: socket.socket) -> None:
    """After a crash the daemon has nothing but these."""
    with subprocess.Popen(["sleep", "600"]) as child:
        pidfd = os.pidfd_open(child.pid)
        assert fdstore.keep("lease-1", pidfd)
        message, descriptors, _, _ = socket.recv_fds(manager, 4096, 4)
        assert message.decode().splitlines() == ["FDSTORE=1", "FDNAME=lease-1", "FDPOLL=0"]
        assert [fdstore.pid_of(number) for number in descriptors] == [child.pid]
        child.kill()
        child.wait()
        assert fdstore.pid_of(descriptors[0]) == -1
        for number in (pidfd, *descriptors):
            os.close(number)
    assert fdstore.forget("lease-1")
    assert manager.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=lease-1"


@pytest.mark.parametrize("name", ["", "a:b", "ä", "a\nb", "x" * 256])
def test_a_name_that_systemd_would_drop_is_refused(name: str) -> None:
    """Systemd passes over such a name in silence, and the descriptor comes back as "stored"."""
    with pytest.raises(ValueError, match="printable"):
        fdstore.keep(name, 0)


def _words(manager: socket.socket) -> list[str]:
    """All messages that wait, their descriptors closed."""
    said = []
    manager.setblocking(False)
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(manager, 4096, 4)
            said.append(f"{message.decode().splitlines()} {len(descriptors)}")
            for number in descriptors:
                os.close(number)
    except BlockingIOError:
        return said


def test_what_is_kept_follows_who_is_inside(manager: socket.socket) -> None:
    """The store has room for so many, and a process that has left must never be found again."""
    kept = Kept(fdstore.receive({}))
    with subprocess.Popen(["sleep", "600"]) as one, subprocess.Popen(["sleep", "600"]) as other:
        first, second = identify(one.pid), identify(other.pid)
        assert first is not None and second is not None
        kept.hold({first})
        kept.hold({first, second})
        kept.hold({second, Process(first.pid, first.started_ticks - 1)})
        one.kill()
        other.kill()
    kept.hold({second})
    kept.hold(())
    assert _words(manager) == [
        f"['FDSTORE=1', 'FDNAME={name_of(first)}', 'FDPOLL=0'] 1",
        f"['FDSTORE=1', 'FDNAME={name_of(second)}', 'FDPOLL=0'] 1",
        f"['FDSTOREREMOVE=1', 'FDNAME={name_of(first)}'] 0",
        f"['FDSTOREREMOVE=1', 'FDNAME={name_of(second)}'] 0",
    ]


def test_the_name_of_a_kept_process_is_read_back() -> None:
    """Another version's names are not mistaken for a process."""
    process = Process(4711, 99)
    assert process_of(name_of(process)) == process
    for foreign in ("stored", "process-1", "process-x-1", "process--1-2", "lease-1-2", ""):
        assert process_of(foreign) is None


def test_a_process_of_before_is_claimed_once(manager: socket.socket) -> None:
    """The pidfd is watched from then on by who claimed it."""
    with subprocess.Popen(["sleep", "600"]) as child:
        process = identify(child.pid)
        assert process is not None
        old = os.pidfd_open(child.pid)
        kept = Kept(fdstore.Passed([(name_of(process), os.pidfd_open(child.pid)), ("stored", old)]))
        assert kept.claim(Process(child.pid, 1)) is None
        pidfd = kept.claim(process)
        assert pidfd is not None and fdstore.pid_of(pidfd) == child.pid
        assert kept.claim(process) is None
        os.close(pidfd)
        kept.hold({process})  # it is there already
        kept.close()
        child.kill()
    assert _words(manager) == ["['FDSTOREREMOVE=1', 'FDNAME=stored'] 0"]


RECEIVER = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from gpulockd.daemon import fdstore
passed = fdstore.receive()
doors = passed.doors()
kept = [(name, fdstore.pid_of(number)) for name, number in passed.pidfds()]
print([len(doors.api), doors.guard is not None], kept, passed, [os.get_inheritable(n) for n in range(3, 7)])
print(doors.guard.getsockname(), "LISTEN_FDS" in os.environ, fdstore.receive())
"""


def test_passed_sockets_and_pidfds_are_told_apart_by_name_and_kind(tmp_path: Path) -> None:
    """Systemd hands over sockets and the store's content in one row."""
    with socket.socket(socket.AF_UNIX) as guard, socket.socket() as api, subprocess.Popen(["sleep", "600"]) as child:
        guard.bind(str(tmp_path / "guard.sock"))
        api.bind(("127.0.0.1", 0))
        pidfd = os.pidfd_open(child.pid)
        with open(os.devnull, "rb") as stranger:
            row = [guard.fileno(), pidfd, api.fileno(), stranger.fileno()]

            def line_up() -> None:
                high = [os.dup2(number, 50 + at) for at, number in enumerate(row)]
                for at, number in enumerate(high):
                    os.dup2(number, fdstore.FIRST + at)

            env = os.environ | {"LISTEN_FDS": "4", "LISTEN_FDNAMES": "guard:lease-7:api:old"}
            done = subprocess.run(
                [sys.executable, "-c", RECEIVER],
                cwd=ROOT, env=env, preexec_fn=line_up, close_fds=False, capture_output=True, text=True,
            )  # fmt: skip
        os.close(pidfd)
        child.kill()
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == f"[1, True] [('lease-7', {child.pid})] <Passed old=6> [False, False, False, False]"
    assert second == f"{tmp_path}/guard.sock False <Passed nothing>"


def test_descriptors_meant_for_another_process_are_left_alone() -> None:
    """The variables are inherited by children that did not clean them."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "guard:api"}
    assert repr(fdstore.receive(environ)) == "<Passed nothing>"
    assert environ == {}


def test_a_reload_says_when_it_began(manager: socket.socket) -> None:
    """Systemd from 253 on tells by the time which reload is meant."""
    reloading()
    first, second = manager.recv(200).decode().splitlines()
    assert first == "RELOADING=1" and second.startswith("MONOTONIC_USEC=") and int(second.partition("=")[2]) > 0


def test_the_watchdog_is_fed_twice_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One late turn of the loop must not cost a restart; another process's watchdog is none of ours."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval_s() == 10
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


def test_one_late_service_is_enough_to_be_unhealthy_and_is_named() -> None:
    """A daemon whose loop turns while its timer is dead hands out nothing."""
    pulses = [Pulse(name="timer", within_s=5, at_s=100), Pulse(name="recorder", within_s=60, at_s=100)]
    assert healthy(pulses, now_s=105) and healthy([], now_s=105)
    assert overdue(pulses, now_s=105.1) == ("timer",)
    assert overdue(pulses, now_s=161) == ("recorder", "timer")


async def test_a_service_that_waits_for_hours_is_not_late() -> None:
    """Most of the time nothing happens; who waits for it is as well as who works."""
    pulses = Pulses()
    pulse = pulses.add("timer", within_s=0.3)
    came = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pulse.rest, came.wait)
        before_s = pulse.at_s
        await until(lambda: pulse.at_s > before_s + 0.3 and pulses.overdue() == ())
        came.set()
    await until(lambda: pulses.overdue() == ("timer",))


@pytest.mark.parametrize("refused", [False, True])
async def test_a_reload_ends_with_ready_whatever_became_of_it(manager: socket.socket, refused: bool) -> None:
    """Systemd waits for it, and counts a service that never says so as still reloading."""

    async def reload() -> None:
        if refused:
            raise ConfigError("config.yml:1:1: unknown key")

    await reloaded(reload)
    assert manager.recv(200).startswith(b"RELOADING=1\n")
    assert manager.recv(200) == b"READY=1"


def test_a_credential_is_read_and_its_stand_in_is_none(tmp_path: Path) -> None:
    """The unit names credentials whose files most installations do not have."""
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credential(API_TOKEN, environ) is None
    (tmp_path / API_TOKEN).write_text("none")
    assert credential(API_TOKEN, environ) is None
    (tmp_path / API_TOKEN).write_text("s3cret\n")
    assert credential(API_TOKEN, environ) == "s3cret"
    assert credential(API_TOKEN, {}) is None
