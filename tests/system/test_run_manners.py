"""`gpulockd run` as a good wrapper: hooks, hang-ups, every signal while waiting, shell lines, the expected start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpulockd.cli.lining import Teller
from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import Started, ask, call, clean_env, command, leases, lives, one_daemon, queued, read_json

Start = Callable[..., Started]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with one simulated GPU."""
    with one_daemon(simulate=1) as running:
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
    until_blocking(lambda: not ask(daemon, "leases") and not ask(daemon, "queue"))


@pytest.fixture
def waiter(daemon: Daemon, start: Start) -> Started:
    """A run that waits behind another."""
    start("run", "-q", "--task", "holder", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "holder"))
    waiting = start("run", "--task", "waiter", "--", "true")
    until_blocking(lambda: queued(daemon, "waiter") and "place 1 of 1" in waiting.said)
    return waiting


def heard(file: Path) -> list[dict[str, Any]]:
    """What a hook that appends its stdin to a file was told."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_hook_is_told_of_the_beginning_and_the_end(daemon: Daemon, tmp_path: Path) -> None:
    """People want a message; what the command prints stays its own."""
    told = tmp_path / "told"
    hook = f'echo from the hook; echo "$GPULOCKD_EVENT $GPULOCKD_LEASE" >&2; cat >> {told}'
    done = call(daemon, "run", "-q", "--task", "job", "--hook", hook, "-c", "echo out; exit 3")
    assert (done.returncode, done.stdout) == (3, "out\n")
    granted, ended = heard(told)
    assert (granted["event"], granted["outcome"], granted["exit"]) == ("granted", "running", None)
    assert (ended["event"], ended["outcome"], ended["exit"], ended["task"]) == ("ended", "exited", 3, "job")
    assert granted["lease"] == ended["lease"]
    assert f"granted {granted['lease']}" in done.stderr
    assert "from the hook" in done.stderr


def test_a_hook_is_told_of_a_lost_lease_and_not_killed_with_the_run(
    daemon: Daemon, start: Start, tmp_path: Path
) -> None:
    """The moment at which somebody must act."""
    told = tmp_path / "told"
    run = start("run", "--task", "loser", "--hook", f"sleep 0.3; cat >> {told}", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "loser") and "got GPU" in run.said)
    assert call(daemon, "release", leases(daemon, "loser")[0]["id"]).returncode == 0
    assert run.wait() == 143
    # Each is told at its moment, and takes its own time to write it down.
    outcomes = {one["event"]: one["outcome"] for one in heard(told)}
    assert outcomes == {"granted": "running", "lost": "lost", "ended": "lost"}
    assert len(heard(told)) == 3


def test_nobody_keeps_a_gpu_for_a_hook(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """A slow notification must not make others wait."""
    run = start("run", "--hook", f"echo $$ > {tmp_path}/pid-$GPULOCKD_EVENT; exec sleep 60", "--", "true")
    files = [tmp_path / name for name in ("pid-granted", "pid-ended")]
    until_blocking(lambda: "released GPU 0" in run.said and all(file.exists() and file.read_text() for file in files))
    assert not ask(daemon, "leases")
    pids = [int(file.read_text()) for file in files]
    assert run.wait(60) == 0
    assert "has not ended within" in run.said
    until_blocking(lambda: not any(lives(pid) for pid in pids))


def test_who_gets_nothing_is_told_to_the_hook_too(daemon: Daemon, waiter: Started, tmp_path: Path) -> None:
    """As to the report."""
    told = tmp_path / "told"
    done = call(daemon, "run", "--no-wait", "-E", "9", "--hook", f"cat >> {told}", "--", "true")
    assert done.returncode == 9
    assert [(one["event"], one["outcome"], one["exit"]) for one in heard(told)] == [("ended", "busy", 9)]


def test_a_shell_line_is_run_by_the_shell_with_its_arguments(daemon: Daemon) -> None:
    """As `sh -c` and `flock -c` do."""
    done = call(daemon, "run", "-q", "-c", 'echo "$0 $1" | tr a-z A-Z; exit 4', "--", "one", "two")
    assert (done.returncode, done.stdout) == (4, "ONE TWO\n")


def test_a_run_under_nohup_outlives_its_terminal(daemon: Daemon, tmp_path: Path) -> None:
    """An ssh connection that breaks must not end a night's work, nor what the command left behind."""
    script = f"(setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 60' &); sleep 0.5; echo done >> {tmp_path}/done"
    words = ["nohup", *command("run", "--task", "night", "-c", script)]
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until_blocking(lambda: leases(daemon, "night") and (tmp_path / "pid").exists())
        run.send_signal(signal.SIGHUP)
        until_blocking(lambda: "the command has ended" in (tmp_path / "log").read_text())
        run.send_signal(signal.SIGHUP)
        assert (tmp_path / "done").exists()
        orphan = int((tmp_path / "pid").read_text())
        assert lives(orphan)
        assert leases(daemon, "night")
        os.kill(orphan, signal.SIGKILL)
        assert run.wait(60) == 0
    finally:
        run.kill()
        run.wait()


def test_a_wait_outlives_a_terminal_that_hangs_up(daemon: Daemon, tmp_path: Path) -> None:
    """Its line cannot be shown any more; its place in the queue is kept, and its turn comes."""
    ours, theirs = os.openpty()
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    holder = Started(daemon, tmp_path, "run", "-q", "--task", "holder", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "holder"))
    waiting = subprocess.Popen(
        [
            "env",
            "--ignore-signal=HUP",
            "setsid",
            "--ctty",
            *command("run", "--task", "waiter", "-c", f"echo done > {tmp_path}/done"),
        ],
        env=env,
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        shown = b""
        while b"waiting: place 1 of 1" not in shown:
            shown += os.read(ours, 65536)
        os.close(ours)
        another = Started(daemon, tmp_path, "run", "-q", "--task", "another", "--", "true")
        until_blocking(lambda: queued(daemon, "another"))  # there is something to show
        assert queued(daemon, "waiter")
        holder.close()
        assert waiting.wait(30) == 0
        assert (tmp_path / "done").exists()
        assert another.wait() == 0
    finally:
        waiting.kill()
        waiting.wait()
        holder.close()


def test_a_terminal_that_has_gone_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left of a wait, its grant must not be lost for want of a place to show it."""

    class Gone:
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise OSError(5, "Input/output error")

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stderr", Gone())
    teller = Teller(quiet=False)
    teller.tell({"state": "waiting", "place": 1, "queued": 1, "text": "place 1 of 1"})
    teller.clear()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGQUIT, 131),
        (signal.SIGHUP, 129),
        (signal.SIGTERM, 143),
        (signal.SIGUSR1, -signal.SIGUSR1),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_every_signal_that_ends_a_wait_frees_its_place(
    daemon: Daemon, waiter: Started, number: signal.Signals, code: int
) -> None:
    """Nobody waits behind a dead one."""
    waiter.process.send_signal(number)
    assert waiter.wait() == code
    until_blocking(lambda: not queued(daemon, "waiter"))


@pytest.mark.parametrize("number", [signal.SIGWINCH, signal.SIGCONT])
def test_signals_of_the_terminal_do_not_end_a_wait(daemon: Daemon, waiter: Started, number: signal.Signals) -> None:
    """A window that changes its size is no reason to lose a place."""
    place = queued(daemon, "waiter")[0]["id"]
    waiter.process.send_signal(number)
    waiter.process.send_signal(signal.SIGSTOP)
    waiter.process.send_signal(signal.SIGCONT)
    later = call(daemon, "run", "--wait", "300ms", "--", "true")
    assert later.returncode == 124
    assert [ticket["id"] for ticket in queued(daemon, "waiter")] == [place]


def test_a_waiter_is_told_when_its_turn_may_come(daemon: Daemon, start: Start) -> None:
    """By what such tasks took the last times; nothing is said of a task that nobody knows."""
    known = [start("run", "-q", "--memory", "4G", "--task", "usual", "--", "sleep", "8") for _ in range(3)]
    assert [one.wait(60) for one in known] == [0, 0, 0]
    start("run", "-q", "--task", "usual", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "usual"))
    waiting = start("run", "--task", "asks", "--wait", "40", "--", "true")
    until_blocking(lambda: "its turn in about" in waiting.said)
    assert "place 1 of 1; its turn in about" in waiting.said


def test_a_report_names_the_task_and_how_it_went(daemon: Daemon, tmp_path: Path) -> None:
    """Exit codes alone cannot say whose they are."""
    assert call(daemon, "run", "-q", "--task", "t", "--report", str(tmp_path / "r"), "-c", "exit 125").returncode == 125
    said = read_json(tmp_path / "r")
    assert (said["task"], said["outcome"], said["exit"]) == ("t", "exited", 125)


def test_a_short_run_loads_nothing_heavy_and_gives_back_at_once(daemon: Daemon) -> None:
    """In a loop over many small files the wrapper's own time is what people feel."""
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    words = [sys.executable, "-X", "importtime", "-m", "gpulockd", "run", "-q", "--task", "short", "--", "true"]
    loaded: set[str] = {"redis"}
    for _ in range(5):  # where the machine is so busy that `true` takes long, the lease is kept as usual
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert not leases(daemon, "short")
        lines = [line for line in done.stderr.splitlines() if "|" in line]
        loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
        if "redis" not in loaded:
            break
    assert not loaded.intersection(("redis", "anyio", "msgspec", "asyncio", "hiredis"))
    told = call(daemon, "events", "--json").stdout
    assert "lock_revoked" not in told.partition("short")[2]


def test_a_report_goes_into_a_device_and_never_takes_its_place(daemon: Daemon, tmp_path: Path) -> None:
    """Root may replace /dev/stdout's target, or /dev/full, for the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert call(daemon, "run", "-q", "--report", str(pipe), "--", "true").returncode == 0
        assert json.loads(os.read(reader, 65536))["exit"] == 0
        assert stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)


@pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-", "2>&-"])
def test_the_exit_code_is_kept_where_nothing_can_be_written(daemon: Daemon, closed: str) -> None:
    """Schedulers start programs so."""
    line = f"{shlex.join(command('run', '--', 'sh', '-c', 'exit 3'))} {closed}"
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert "Error" not in done.stderr


def test_what_a_hook_runs_does_not_join_the_run(daemon: Daemon, tmp_path: Path) -> None:
    """It would keep on when the run is over, with a GPU that is another's by then."""
    nested = f"{' '.join(command('run'))} --no-wait -- true; echo $? > {tmp_path}/code"
    hook = f'[ "$GPULOCKD_EVENT" = granted ] && {{ {nested}; }}'
    done = call(daemon, "run", "-q", "--hook", hook, "-c", f"until [ -s {tmp_path}/code ]; do sleep 0.05; done")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "code").read_text().strip() == "75"
