"""`gpulockd run`: signals, descendants, limits, and deaths of all who take part, with a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpulockd.cli.keeping import DEFAULT_GRACE_S
from tests.daemons import Daemon, daemon_folder, running_daemon
from tests.states import until, until_blocking
from tests.system.commands import (
    Started,
    ask,
    call,
    clean_env,
    is_followed,
    leases,
    lives,
    one_daemon,
    queued,
    read_json,
)

Start = Callable[..., Started]
QUICK = {"session": {"ttl": 4.0, "keepalive": 0.5, "rpc_deadline": 0.5, "margin": 0.2, "claim_window": 0.6}}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with two simulated GPUs, under which a dead process is noticed within seconds."""
    with one_daemon(config=QUICK) as running:
        yield running


@pytest.fixture
def start(daemon: Daemon, tmp_path: Path) -> Iterator[Start]:
    """Starts commands that do not outlive the test."""
    started: list[Started] = []

    def begin(*words: str, **env: str) -> Started:
        started.append(Started(daemon, tmp_path, *words, **env))
        return started[-1]

    yield begin
    for one in started:
        one.close()
    until_blocking(lambda: not ask(daemon, "leases"))


def pid_in(file: Path) -> int:
    """The pid that a command has written, once it has."""
    until_blocking(lambda: file.exists() and file.read_text().strip())
    return int(file.read_text())


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1", "USR2", "INT", "QUIT"])
def test_a_signal_to_the_wrapper_reaches_the_command(start: Start, tmp_path: Path, name: str) -> None:
    """Whoever stops a job knows only the wrapper's pid."""
    script = f"trap 'echo heard; exit 9' {name}; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    run = start("run", "-q", "--", "bash", "-c", script)
    pid_in(tmp_path / "pid")
    run.process.send_signal(signal.Signals[f"SIG{name}"])
    assert run.wait() == 9
    assert run.printed == "heard\n"


def test_a_process_that_outlives_the_command_keeps_the_lease(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """A job that goes to the background with its GPU memory must not share the card with the next holder."""
    script = f"(setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' &) ; exit 3"
    run = start("run", "--task", "forks", "--", "sh", "-c", script)
    orphan = pid_in(tmp_path / "pid")
    until_blocking(lambda: "the command has ended" in run.said)
    assert str(orphan) in run.said
    assert run.process.poll() is None
    assert leases(daemon, "forks")
    os.kill(orphan, signal.SIGKILL)
    assert run.wait() == 3
    assert not leases(daemon, "forks")


def test_interrupting_after_the_command_ends_what_it_left(start: Start, tmp_path: Path) -> None:
    """The person at the terminal must be able to get out."""
    run = start("run", "--", "sh", "-c", f"(setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' &) ; exit 0")
    orphan = pid_in(tmp_path / "pid")
    until_blocking(lambda: "the command has ended" in run.said)
    run.process.send_signal(signal.SIGINT)
    run.wait()
    assert not lives(orphan)


def test_the_command_dies_with_its_wrapper_and_the_lease_ends(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """A wrapper that is killed can keep nothing; what it guarded must not go on."""
    run = start("run", "-q", "--task", "killed", "--", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    pid = pid_in(tmp_path / "pid")
    until_blocking(lambda: leases(daemon, "killed"))
    run.process.kill()
    until_blocking(lambda: not lives(pid))
    until_blocking(lambda: not leases(daemon, "killed"))


def test_children_from_before_are_no_part_of_the_run(daemon: Daemon, tmp_path: Path) -> None:
    """A shell that execs the wrapper leaves it its background jobs; neither it nor the daemon ends them."""
    script = f"sleep 60 & echo $! > {tmp_path}/pid; exec {sys.executable} -m gpulockd run -q --timeout 1 -- sleep 50"
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    done = subprocess.run(["sh", "-c", script], env=env, timeout=60, stdout=subprocess.DEVNULL)
    stranger = pid_in(tmp_path / "pid")
    try:
        assert done.returncode == 143
        until_blocking(lambda: not ask(daemon, "leases"))
        until_blocking(
            lambda: all(gpu["state"] == "ready" for gpu in ask(daemon, "gpus"))
        )  # seen out by the daemon too
        assert lives(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)


def test_the_wrapper_dies_and_children_from_before_live_on(daemon: Daemon, tmp_path: Path) -> None:
    """The daemon ends what the run has left, and that alone."""
    left = f"setsid sleep 61 & echo $! >{tmp_path}/left; wait"
    words = f"{sys.executable} -m gpulockd run -q --task leaver -- sh -c '{left}'"
    script = f"sleep 60 & echo $! >{tmp_path}/pid; exec {words}"
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    wrapper = subprocess.Popen(["sh", "-c", script], env=env, stdout=subprocess.DEVNULL)
    left_pid, stranger = pid_in(tmp_path / "left"), pid_in(tmp_path / "pid")
    try:
        until_blocking(lambda: leases(daemon, "leaver"))
        until_blocking(lambda: is_followed(daemon, left_pid))
        wrapper.kill()
        wrapper.wait()
        until_blocking(lambda: not lives(left_pid))
        until_blocking(lambda: not leases(daemon, "leaver"))
        assert lives(stranger)
    finally:
        for pid in (left_pid, stranger):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_the_hard_limit_ends_the_whole_run(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """SIGTERM first; who ignores it gets SIGKILL after the grace."""
    script = f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"
    run = start(
        *("run", "--timeout", "500ms", "--report", str(tmp_path / "r"), "--", "bash", "-c", script),
        GPULOCKD_SETTLE_GRACE="1",
    )
    assert run.wait() == 137
    assert "limits hard 0.5 s" in run.said
    said = read_json(tmp_path / "r")
    assert (said["outcome"], said["exit"]) == ("hard_timeout", 137)
    assert 1.0 < said["held_s"] < DEFAULT_GRACE_S
    assert not lives(pid_in(tmp_path / "pid"))


def test_a_stopped_run_that_says_0_has_not_finished(start: Start, tmp_path: Path) -> None:
    """A pipeline would take half a result for a whole one."""
    script = f"trap 'exit 0' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.05; done"
    assert start("run", "-q", "--timeout", "700ms", "--", "bash", "-c", script).wait() == 143


def test_a_lost_lease_stops_the_command(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """Who has lost the GPU must not go on using it."""
    run = start("run", "--task", "loser", "--report", str(tmp_path / "r"), "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "loser") and "got GPU" in run.said)
    taken = call(daemon, "release", leases(daemon, "loser")[0]["id"])
    assert taken.returncode == 0, taken.stderr
    assert run.wait() == 143
    assert "lost" in run.said
    assert "revoked" in run.said
    assert read_json(tmp_path / "r")["outcome"] == "lost"


def test_a_run_keeps_its_lease_by_itself(daemon: Daemon, start: Start) -> None:
    """The session lives on its own keepalives, long after the daemon's have ended."""
    start("run", "-q", "--task", "long", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "long"))
    first = leases(daemon, "long")[0]
    time.sleep(1.5 * QUICK["session"]["ttl"])  # there is no state to wait for: nothing may happen
    now = leases(daemon, "long")
    assert [lease["token"] for lease in now] == [first["token"]]


async def test_a_run_and_its_waiter_survive_a_killed_daemon(tmp_path: Path) -> None:
    """A restart of the daemon is nothing to a run, and a waiter keeps its place."""
    async with daemon_folder() as base:
        async with running_daemon(base=base) as first:
            holder = Started(first, tmp_path, "run", "-q", "-n", "2", "--task", "holder", "--", "sleep", "300")
            await until(lambda: leases(first, "holder"))
            token = leases(first, "holder")[0]["token"]
            waiter = Started(first, tmp_path, "run", "--task", "waiter", "--", "true")
            await until(lambda: queued(first, "waiter") and "place 1 of 1" in waiter.said)
            ticket = queued(first, "waiter")[0]["id"]
            await first.kill()
        try:
            async with running_daemon(base=base) as second:
                await until(lambda: [one["id"] for one in queued(second, "waiter")] == [ticket])
                assert [lease["token"] for lease in leases(second, "holder")] == [token]
                holder.process.terminate()
                assert await asyncio.to_thread(waiter.wait) == 0, waiter.said
                assert "keeping the place" in waiter.said
                assert holder.wait() == 143
        finally:
            holder.close()
            waiter.close()
