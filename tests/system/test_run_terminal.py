"""`gpulockd run` in an interactive shell: Ctrl-C, Ctrl-Z, and the line that is refreshed in place."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import ask, clean_env, command, leases, one_daemon, queued

RUN = " ".join(command("run"))


class Shell:
    """An interactive bash on a terminal of its own."""

    def __init__(self, daemon: Daemon) -> None:
        self.shown = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            env = clean_env(GPULOCKD_SOCKET=daemon.socket, TERM="xterm", PS1="> ")
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], env)

    def type(self, text: str) -> None:
        """Type something; "\x03" is Ctrl-C."""
        self.shown = ""
        os.write(self._terminal, text.encode())

    def see(self, text: str, within_s: float = 30.0) -> None:
        """Wait until the terminal shows it."""
        deadline = time.monotonic() + within_s
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} not in {self.shown!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                self.shown += os.read(self._terminal, 65536).decode(errors="replace")

    def code(self) -> str:
        """The last exit code."""
        self.type("echo co''de=$?.\n")
        self.see("code=")
        self.see(".\r\n")
        return self.shown.rpartition("code=")[2].partition(".")[0]

    def close(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._terminal)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with one simulated GPU."""
    with one_daemon(simulate=1) as running:
        yield running


@pytest.fixture
def shell(daemon: Daemon) -> Iterator[Shell]:
    """A shell that holds nothing at the end."""
    opened = Shell(daemon)
    yield opened
    until_blocking(lambda: not ask(daemon, "leases"))
    opened.close()


def test_ctrl_c_ends_the_command_and_the_run(shell: Shell) -> None:
    """Both are in the foreground."""
    shell.type(f"{RUN} -- sleep 300\n")
    shell.see("got GPU 0")
    shell.type("\x03")
    shell.see("released GPU 0")
    assert shell.code() == "130"


def test_ctrl_c_is_the_commands_own_once_and_its_exit_code_too(shell: Shell, daemon: Daemon) -> None:
    """A trainer that saves on Ctrl-C must not be hit twice."""
    script = (
        'n=0; trap "n=\\$((n+1))" INT; echo rea""dy; while [ $n = 0 ]; do sleep 0.1; done; sleep 0.5; exit $((40+n))'
    )
    shell.type(f"{RUN} -q -- bash -c '{script}'\n")
    shell.see("ready")
    shell.type("\x03")
    until_blocking(lambda: not ask(daemon, "leases"))
    assert shell.code() == "41"


def is_stopped_and_goes_on(shell: Shell) -> None:
    """Stop the run with Ctrl-Z, and let it go on to its end."""
    shell.type("\x1a")
    shell.see("the GPU stays taken until the hard limit")
    shell.see("Stopped")
    shell.type("fg\n")
    shell.see("released GPU 0")
    assert shell.code() == "0"


def test_ctrl_z_gives_the_shell_back_and_fg_goes_on(shell: Shell) -> None:
    """Job control works as without us."""
    shell.type(f"{RUN} -- sleep 6\n")
    shell.see("got GPU 0")
    is_stopped_and_goes_on(shell)


SLOW_TO_BEGIN = """
import os, sys, time
from gpulockd import cli
from gpulockd.cli.child import Run
made = Run._before_exec
def slow(*of):
    prepare = made(*of)
    return lambda: (prepare(), os.write(2, b"almost"), time.sleep(1))
Run._before_exec = slow
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command takes a second between its last preparation and its exec, as on a machine that has much to do."""


def test_ctrl_z_before_the_command_has_begun_gives_the_shell_back_too(shell: Shell, tmp_path: Path) -> None:
    """A command that is stopped there never begins, and who waits for its beginning hangs with the terminal."""
    (tmp_path / "slow.py").write_text(SLOW_TO_BEGIN)
    shell.type(f"{sys.executable} {tmp_path}/slow.py run -- sleep 3\n")
    shell.see("almost")
    is_stopped_and_goes_on(shell)


def test_a_wait_is_one_line_refreshed_in_place_and_ctrl_c_leaves_it(shell: Shell, daemon: Daemon) -> None:
    """A queue must not scroll the terminal away."""
    shell.type(f"{RUN} -q --task holder -- sleep 300 &\n")
    until_blocking(lambda: leases(daemon, "holder"))
    shell.type(f"{RUN} --task waiter -- true\n")
    shell.see("\r\x1b[Kgpulockd: waiting: place 1 of 1")
    shell.type("\x03")
    assert shell.code() == "130"
    until_blocking(lambda: not queued(daemon, "waiter"))
    shell.type("kill %1; wait\n")
