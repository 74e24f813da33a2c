"""The rows of upgrades: commands and programs of one version under a daemon of the other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import STEADY, Daemon
from tests.faults.older import Version, Versions, versions
from tests.states import until_blocking
from tests.system.commands import Started, ask, call, clean_env, command, leases, one_daemon, queued

CONFIG: dict[str, Any] = STEADY | {
    "tasks": {"brief": {"warning": 0.5, "soft_timeout": 1}},
    "gpu_lock_monitor": {"monitor_interval": 1},  # who was not listening yet is asked again so soon
}

NESTED = """
import os
from gpulockd import gpu_lock
with gpu_lock(nested="join") as lease:
    print(lease.token, os.environ["GPULOCKD_TOKEN"])
"""
"""A program inside `gpulockd run`: it is in the run's lease."""

BRIEF = """
import time
from gpulockd import gpu_lock
with gpu_lock("gpu_lock:1", task="brief") as lease:
    while not lease.stopping.is_set() and not lease.lost.is_set():
        time.sleep(0.02)
"""
"""A program that leaves when it is asked to, at its soft limit."""

LOOKS = (
    "status", "queue", "history --since 1h", "events --since 1h", "alerts", "config show --origin", "config history",
    "doctor --json", "gpu drain 1", "gpu resume 1", "config set gpu_lock.poll_interval=1.5 --reason tried",
    "config rollback --reason back",
)  # fmt: skip


@pytest.fixture(scope="module")
def both(pytestconfig: pytest.Config) -> Versions:
    """This version and the older one."""
    return versions(pytestconfig)


class Shell:
    """Whoever types commands of one version, on the host of a daemon of the other."""

    def __init__(self, daemon: Daemon, folder: Path, commands: Version, other: Version, stack: ExitStack) -> None:
        self.daemon = daemon
        self.folder = folder
        self.commands = commands
        self.other = other
        self.stack = stack

    def said(self, words: str, code: int = 0) -> str:
        """What a command prints, which ends with that code."""
        done = call(self.daemon, *words.split(), **self.commands.env)
        assert done.returncode == code and "Traceback" not in done.stderr, (words, done.returncode, done.stderr)
        return done.stdout

    def begun(self, *words: str) -> Started:
        """A command that goes on."""
        run = Started(self.daemon, self.folder, *words, **self.commands.env)
        self.stack.callback(run.close)
        return run

    def python(self, program: str) -> int:
        """The exit code of a program of the commands' version."""
        env = clean_env(GPULOCKD_SOCKET=self.daemon.socket, **self.commands.env)
        return subprocess.run([sys.executable, "-c", program], env=env, timeout=60).returncode

    def sleeper(self) -> subprocess.Popen[bytes]:
        """A process that may hold."""
        process = self.stack.enter_context(subprocess.Popen(["sleep", "300"]))
        self.stack.callback(process.kill)
        return process


@contextmanager
def shell(folder: Path, daemon: Version, commands: Version) -> Iterator[Shell]:
    """A daemon with two cards, and commands."""
    with one_daemon(config=CONFIG, env=daemon.env, simulate=2) as running, ExitStack() as stack:
        yield Shell(running, folder, commands, daemon, stack)
        assert "Traceback" not in running.log


def use(here: Shell) -> None:
    """Run, wait, look around, take, renew and give back, and be in a run with a program of the daemon's version."""
    holder = here.begun("run", "--gpu", "0", "--task", "holder", "--", "sleep", "300")
    until_blocking(lambda: leases(here.daemon, "holder"))
    theirs = ("env", f"PYTHONPATH={here.other.env['PYTHONPATH']}", sys.executable, "-c", NESTED)
    waiter = here.begun("run", "--gpu", "0", "--task", "waiter", "--", *theirs)
    until_blocking(lambda: queued(here.daemon, "waiter") and "place 1" in waiter.said)
    here.said("run --gpu 0 --no-wait -- true", 75)
    for words in LOOKS:
        here.said(words)
    assert [row["task"] for row in json.loads(here.said("status --json"))["leases"]] == ["holder"]
    timed = json.loads(here.said("acquire --gpu 1 --ttl 5m --json"))["lease"]
    here.said(f"renew {timed} --ttl 6m")
    here.said(f"progress --lease {timed} 40 half")
    here.said("release 1")
    process = here.sleeper()
    here.said(f"acquire --gpu 1 --pid {process.pid}")
    here.said("release 1")
    here.said("release 0")
    assert waiter.wait() == 0, waiter.said
    assert holder.wait() == 143
    inside, token = waiter.printed.split()
    assert inside == token
    assert process.poll() is None


def be_asked_to_stop(here: Shell) -> None:
    """Hold beyond the soft limit, in a run and in a program."""
    run = here.begun("run", "--gpu", "1", "--task", "brief", "--", "sleep", "300")
    assert run.wait() == 143
    assert "asked to stop" in run.said
    assert here.python(BRIEF) == 0


def move_a_backup(here: Shell) -> None:
    """Write one with the commands, and restore it with those of the daemon's version; then the other way round."""
    for n, (first, second) in enumerate(((here.commands, here.other), (here.other, here.commands))):
        file = str(here.folder / f"{n}.gz")
        for version, *words in ((first, "backup", file), (second, "restore", file, "--reason", "moved")):
            done = call(here.daemon, *words, **version.env)
            assert done.returncode == 0, (words, done.stderr)


def test_older_commands_under_this_daemon(both: Versions, tmp_path: Path) -> None:
    """Whoever has upgraded the service has not yet upgraded every user's environment."""
    with shell(tmp_path, both.new, both.old) as here:
        use(here)
        be_asked_to_stop(here)
        move_a_backup(here)


def test_these_commands_under_an_older_daemon(both: Versions, tmp_path: Path) -> None:
    """A user's environment is upgraded at any time, the service when its operator comes to it."""
    with shell(tmp_path, both.old, both.new) as here:
        use(here)
        be_asked_to_stop(here)
        leave_the_line(here)
        be_refused_with_the_cure(here)


def leave_the_line(here: Shell) -> None:
    """Be interrupted while waiting for a lease that the daemon would keep: it knows no tickets of theirs."""
    process = here.sleeper()
    here.said(f"acquire --gpu 0 --pid {process.pid}")
    waiting = here.begun("acquire", "--gpu", "0", "--ttl", "5m", "--task", "waits")
    until_blocking(lambda: queued(here.daemon, "waits"))
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.wait() == 130
    until_blocking(lambda: not ask(here.daemon, "queue"))


def be_refused_with_the_cure(here: Shell) -> None:
    """Ask for what an older daemon cannot do: it would end the background jobs of the shell that became this run."""
    line = f"sleep 300 2>&- & echo $! >{here.folder}/job; exec {' '.join(command('run', '--gpu', '1', '--', 'true'))}"
    env = clean_env(GPULOCKD_SOCKET=here.daemon.socket, **here.commands.env)
    done = subprocess.run(["bash", "-c", line], env=env, stderr=subprocess.PIPE, text=True, timeout=60)
    subprocess.run(["kill", (here.folder / "job").read_text().strip()])
    assert done.returncode in (0, 125)  # 0: the older one can do it by now
    if done.returncode:
        assert "newer than the daemon" in done.stderr
        assert "systemctl restart gpulockd" in done.stderr
