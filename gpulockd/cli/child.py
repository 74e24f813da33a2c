"""The command of a run and all its descendants: started, signalled, reaped.

The command dies with its wrapper (PR_SET_PDEATHSIG); orphans of the run come to the wrapper, which is their subreaper.
So the run is over exactly when the wrapper has no child left but those it had before.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from gpulockd.cli.processes import Member, descendants, has_children, look, pending, send

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

NOT_RUNNABLE, NOT_FOUND = 126, 127

ENDS_FROM_TERMINAL = {signal.SIGINT, signal.SIGQUIT}

Mask = set[int | signal.Signals]


def refusal_of(program: str) -> OSError | None:
    """Why a program cannot be run, as far as can be told before it is; None if nothing stands against it."""
    places = [program] if os.sep in program else [os.path.join(folder, program) for folder in os.get_exec_path()]
    found = [place for place in places if os.path.exists(place)]
    if not found:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if any(os.path.isfile(place) and os.access(place, os.X_OK) for place in found):
        return None
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class Run:
    """A command and its descendants. Make and start it before the first thread: what runs between fork and exec
    must find no lock that another thread held."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], mask: Mask) -> None:
        """:param mask: the signals that the command is to find blocked"""
        self.command = list(command)
        self.status: int | None = None
        self._env = dict(env)
        self._mask = mask
        self._popen: subprocess.Popen[bytes] | None = None
        self._strangers: set[tuple[int, int]] = set()

    def start(self) -> None:
        """Start the command.

        :raises OSError: if it cannot be run
        """
        libc = ctypes.CDLL(None, use_errno=True)
        # A shell's `exec gpulockd run` leaves us its background jobs as children; they are not of the run.
        before = descendants(os.getpid()) if has_children() else []
        self._strangers = {(member.pid, member.started_ticks) for member in before}
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._popen = subprocess.Popen(
            self.command,
            env=self._env,
            close_fds=False,
            preexec_fn=self._before_exec(libc, os.getpid()),  # noqa: PLW1509 # no thread exists yet
        )
        if signal.SIGTSTP in signal.sigpending():  # a Ctrl-Z from before the exec has not stopped the command
            os.kill(self.pid, signal.SIGTSTP)

    def _before_exec(self, libc: ctypes.CDLL, wrapper: int) -> Callable[[], None]:
        def prepare() -> None:
            libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            # The wrapper may have died before the line above.
            if os.getppid() != wrapper:
                os._exit(NOT_RUNNABLE)
            # Stopped before its exec it would keep us waiting for that, and the shell for us. An exec ends the handler.
            if signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
                signal.signal(signal.SIGTSTP, lambda *_: None)
            # A Ctrl-C that waits behind the mask must end the child here, not raise in this interpreter.
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            # One from before the fork has reached the wrapper alone, which takes it for one that both have.
            for number in (ENDS_FROM_TERMINAL & pending(wrapper)) - signal.sigpending():
                os.kill(os.getpid(), number)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

        return prepare

    def spare(self, pid: int | None) -> None:
        """A child of ours that is no part of the run: nobody waits for it or signals it."""
        found = look(pid) if pid is not None else None
        if found is not None:
            self._strangers.add((found.pid, found.started_ticks))

    @property
    def pid(self) -> int:
        """The command's pid."""
        assert self._popen is not None
        return self._popen.pid

    def reap(self) -> bool:
        """Take the exits of all that have ended; return whether the whole run is over."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return self.status is not None and bool(self._strangers) and not self.members()
            if pid == self.pid:
                self.status = status
                assert self._popen is not None
                self._popen.returncode = os.waitstatus_to_exitcode(status)

    @property
    def exit_code(self) -> int:
        """The command's own exit code, 128+n if signal n ended it."""
        code = os.waitstatus_to_exitcode(self.status or 0)
        return code if code >= 0 else 128 - code

    def members(self) -> list[Member]:
        """The living processes of the run, the command first."""
        strangers = self._strangers
        living = descendants(os.getpid())
        outside = {member.pid for member in living if (member.pid, member.started_ticks) in strangers}
        found = []
        for member in living:  # parents come before their children
            if member.pid in outside or member.parent in outside:
                outside.add(member.pid)
            else:
                found.append(member)
        return sorted(found, key=lambda member: member.pid != self.pid)

    def signal_command(self, number: int) -> None:
        """Signal the command, or where it has ended what it left."""
        command = look(self.pid) if self.status is None else None
        # Nobody but us reaps it, so its pid cannot have changed hands.
        if command is not None:
            send(command, number)
        else:
            self.signal_all(number)

    def signal_all(self, number: int) -> None:
        """Signal every process of the run; stopped ones go on, so that they can obey."""
        for member in self.members():
            if send(member, number) and number not in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGKILL):
                send(member, signal.SIGCONT)
