"""The three levels as users meet them: a daemon, `gpulockd run`, programs in Python, and the daemon's restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from gpulockd.events import Event, decode
from gpulockd.ledger.keys import PoolKeys
from tests.daemons import Daemon, daemon_folder, running_daemon
from tests.states import until, until_blocking
from tests.system.commands import Started, clean_env, leases, lives, one_daemon, read_json

Start = Callable[..., Started]

LEVELS = {"warning": 1.0, "soft_timeout": 4.0, "hard_timeout": 8.0}
"""A daemon that is stalled from one level to the next passes the lower one over, so they are seconds apart."""

CONFIG: dict[str, Any] = {
    "session": {"ttl": 12.0, "keepalive": 1.0, "rpc_deadline": 1.0, "margin": 0.2},
    "gpu_lock_monitor": {"timeout_levels": LEVELS, "monitor_interval": 60.0},
    "settle": {"grace": 4.0},
}

LEAVES_WHEN_ASKED = """
import sys
from gpulockd import gpu_lock
with gpu_lock(task="polite") as lease:
    print("begun", flush=True)
    print("asked" if lease.stopping.wait_blocking(60) else "never", flush=True)
"""

OVERSTAYS = """
import sys, time
from gpulockd import gpu_lock
with gpu_lock(task="rude") as lease:
    print("begun", flush=True)
    while True:
        time.sleep(0.1)
"""

REPORTS_ITSELF = """
import sys, time
from gpulockd import LeaseLost, gpu_lock
try:
    with gpu_lock(task="manual", heartbeat="manual", warning="1h", soft_timeout="2h", hard_timeout="3h") as lease:
        for _ in range(20):
            lease.progress(1)
            time.sleep(0.1)
        print("spoke", flush=True)
        while True:
            time.sleep(0.1)
            if lease.lost.is_set():
                break
except LeaseLost:
    print("lost", flush=True)
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with two simulated GPUs whose levels act within seconds."""
    with one_daemon(config=CONFIG) as running:
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


@pytest.fixture
def program(daemon: Daemon) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts Python programs that do not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(text: str) -> subprocess.Popen[str]:
        started.append(run_program(daemon, text))
        return started[-1]

    yield begin
    for one in started:
        one.kill()
        one.communicate()


def run_program(daemon: Daemon, text: str) -> subprocess.Popen[str]:
    """A Python program that finds this daemon."""
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, env=env)


def said(program: subprocess.Popen[str]) -> str:
    """The next line of a program."""
    assert program.stdout is not None
    return program.stdout.readline().strip()


def told(daemon: Daemon, task: str) -> list[tuple[str, str | None]]:
    """What the ledger has said of a task's limits."""
    with redis.Redis.from_url(daemon.store_url) as raw:
        rows = [decode(fields[b"e"]) for _, fields in raw.xrange(PoolKeys(daemon.pool).events_channel)]
    kinds = ("timeout_warned", "stop_requested", "heartbeat_missed", "lock_revoked")
    events: list[Event] = [event for event in rows if event is not None and event.task == task]
    return [(event.kind, event.reason) for event in events if event.kind in kinds]


def test_a_run_is_warned_of_asked_and_ended(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """Each level once, on its own time, with the full check a minute away."""
    script = f"trap 'echo asked >> {tmp_path}/asked' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done"
    run = start("run", "--task", "all-levels", "--", "bash", "-c", script, GPULOCKD_SETTLE_GRACE="0.3")
    assert run.wait(60) == 137
    assert told(daemon, "all-levels") == [
        ("timeout_warned", "warning"),
        ("stop_requested", "soft"),
        ("lock_revoked", "hard_timeout"),
    ]
    assert (tmp_path / "asked").read_text().splitlines()[:1] == ["asked"]
    assert "asked to stop: SIGTERM to the command" in run.said
    assert not lives(int((tmp_path / "pid").read_text()))
    until_blocking(lambda: not leases(daemon, "all-levels"))


def first_line(run: Started) -> str:
    """The first line that a run says; where the machine is slow, it says that it waits before."""
    return next(line for line in run.said.splitlines() if not line.startswith("gpulockd: waiting"))


def test_the_first_line_names_the_limits(start: Start) -> None:
    """Who is stopped in an hour must know it now."""
    usual = start("run", "--", "true")
    assert usual.wait() == 0
    assert "limits warning 1.0 s, soft 4.0 s, hard 8.0 s" in first_line(usual)
    longer = start("run", "--timeout", "1h", "--", "true")
    assert longer.wait() == 0
    assert "limits warning 7:30, soft 30:00, hard 1:00:00" in longer.said
    none = start("run", "--timeout", "none", "--", "true")
    assert none.wait() == 0
    assert "no limits" in first_line(none)


def test_without_limits_a_run_is_left_alone(daemon: Daemon, start: Start) -> None:
    """`--timeout none` means the levels too."""
    run = start("run", "--task", "endless", "--timeout", "none", "--", "sleep", "9.5")
    assert run.wait(60) == 0
    assert told(daemon, "endless") == []


def test_the_soft_signal_is_the_users_choice(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """Trainers save a checkpoint at SIGUSR1; the exit code stays the command's own."""
    script = f"trap 'echo saved > {tmp_path}/saved; exit 0' USR1; while :; do sleep 0.05; done"
    report = tmp_path / "r"
    run = start("run", "--task", "saves", "--soft-signal", "USR1", "--report", str(report), "--", "bash", "-c", script)
    assert run.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert read_json(report)["outcome"] == "exited"
    assert ("lock_revoked", "hard_timeout") not in told(daemon, "saves")


def test_a_program_that_leaves_when_asked_is_not_ended(
    daemon: Daemon, program: Callable[[str], subprocess.Popen[str]]
) -> None:
    """`lease.stopping` in a thread, as the soft limit sets it."""
    polite = program(LEAVES_WHEN_ASKED)
    assert [said(polite), said(polite)] == ["begun", "asked"]
    assert polite.wait(30) == 0
    assert ("lock_revoked", "hard_timeout") not in told(daemon, "polite")


def test_a_program_that_overstays_loses_its_gpu_and_the_next_one_gets_it(
    daemon: Daemon, start: Start, program: Callable[[str], subprocess.Popen[str]]
) -> None:
    """A hard limit that leaves the GPU taken would be none."""
    rude = program(OVERSTAYS)
    assert said(rude) == "begun"
    key = leases(daemon, "rude")[0]["gpus"][0]
    assert start("run", "--gpu", key, "--task", "next", "--", "true").wait(60) == 0
    assert told(daemon, "rude")[-1] == ("lock_revoked", "hard_timeout")


def test_a_daemon_that_was_away_acts_on_the_highest_level_and_never_twice(tmp_path: Path) -> None:
    """Its ages are the ledger's, its marks too."""
    config = CONFIG | {"gpu_lock_monitor": {"timeout_levels": LEVELS | {"hard_timeout": 3600.0}}}

    async def scene() -> None:
        async with daemon_folder() as base:
            async with running_daemon(base=base, config=config) as first:
                holder = run_program(first, OVERSTAYS)
                assert said(holder) == "begun"
                await first.kill()
            try:
                time.sleep(1.2)  # the age must grow while no daemon is there
                async with running_daemon(base=base, config=config) as second:
                    await until(lambda: ("stop_requested", "soft") in told(second, "rude"))
                    reached = told(second, "rude")
                    await second.kill()
                assert reached[-1] == ("stop_requested", "soft")
                assert len(reached) == len(set(reached))  # the first daemon may have warned before it was killed
                async with running_daemon(base=base, config=config) as third:
                    until_blocking(lambda: leases(third, "rude"))
                    time.sleep(1.0)  # time enough for a second stop, which must not come
                    assert told(third, "rude") == reached
            finally:
                holder.kill()
                holder.communicate()

    anyio.run(scene)


@pytest.fixture(scope="module")
def watching() -> Iterator[Daemon]:
    """A daemon whose tasks must be heard of every few seconds."""
    heartbeat = {"interval": 0.2, "timeout": 4.0}
    config = CONFIG | {"gpu_lock_monitor": {"heartbeat": heartbeat, "monitor_interval": 0.3}}
    with one_daemon(config=config) as running:
        yield running


def test_a_task_that_reports_by_itself_is_ended_when_it_falls_silent(watching: Daemon) -> None:
    """`heartbeat="manual"`: twenty words in two seconds are well, silence is a stall."""
    manual = run_program(watching, REPORTS_ITSELF)
    try:
        assert [said(manual), said(manual)] == ["spoke", "lost"]
        assert told(watching, "manual") == [("heartbeat_missed", "silent"), ("lock_revoked", "silent")]
    finally:
        manual.kill()
        manual.communicate()


def test_a_process_that_was_stopped_is_found_by_what_it_does_not_use(watching: Daemon) -> None:
    """Frozen with its GPU, it beats no more and uses nothing: the daemon gives the GPU to the next one."""
    frozen = run_program(watching, OVERSTAYS.replace("rude", "frozen"))
    try:
        assert said(frozen) == "begun"
        os.kill(frozen.pid, signal.SIGSTOP)
        until_blocking(lambda: not leases(watching, "frozen"))
        assert told(watching, "frozen")[0] == ("heartbeat_missed", "silent")
    finally:
        frozen.kill()
        frozen.communicate()


def test_a_body_that_computes_without_a_word_is_not_touched(watching: Daemon) -> None:
    """The keepalive thread beats while the body never awaits."""
    busy = run_program(watching, OVERSTAYS.replace("rude", "busy").replace("time.sleep(0.1)", "pass"))
    try:
        assert said(busy) == "begun"
        until_blocking(lambda: leases(watching, "busy")[0]["held_s"] > 6)
        assert told(watching, "busy") == []
    finally:
        busy.kill()
        busy.communicate()
