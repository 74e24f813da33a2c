"""The processes of the demo: started in order, watched, and ended in the opposite order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from gpulockd.cli import INTERRUPTED, http
from gpulockd.cli.child import PR_SET_PDEATHSIG
from gpulockd.cli.talk import CommandError, say
from gpulockd.demo import CARDS, leftover
from gpulockd.demo.site import Site

LOAD = ("ocr-1", "ocr-2", "ocr-3", "whisper", "train", "embed")
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCHED = (*ENDS, signal.SIGCHLD)

DAEMON_STARTS_WITHIN_S = 60.0
GPUS_OFFERED_WITHIN_S = 30.0
LOAD_ENDS_WITHIN_S = 5.0
DAEMON_ENDS_WITHIN_S = 20.0
LOOK_S = 0.05

_OF_ANOTHER_RUN = ("GPULOCKD_LEASE", "GPULOCKD_TOKEN")
_OF_ANOTHER_STORE = ("GPULOCKD_REDIS_URL", "GPULOCKD_POOL", "GPULOCKD_DISABLE")


class Scene:
    """A daemon and its load."""

    def __init__(self, site: Site, *, with_load: bool) -> None:
        self._site = site
        self._names = LOAD if with_load else ()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._load: list[subprocess.Popen[bytes]] = []
        self._libc = ctypes.CDLL(None)
        self._ended_by = 0

    def play(self) -> int:
        """Run until a signal or the daemon's end; return the exit code."""
        # Ctrl-C is for this process alone, which then ends the others in order; blocked, it can wait until it is asked.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        try:
            env = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_RUN}
            env["GPULOCKD_SOCKET"] = self._site.folders.api_socket
            words = [sys.executable, "-m", "gpulockd", "serve", *self._site.words]
            # The daemon says that it is ready on stdout and in its log: where both go to one place, once is enough.
            self._daemon = self._start(words, env, stdout=subprocess.DEVNULL if _is_one_place(1, 2) else None)
            is_up = self._wait_for_answer(self._daemon, "/livez", DAEMON_STARTS_WITHIN_S)
            if is_up:
                if self._names:
                    self._start_load(env)
                self._watch(self._daemon)
            if self._ended_by:
                return INTERRUPTED if self._ended_by == signal.SIGINT and not is_up else 0
            return _told_end(self._daemon.poll())
        finally:
            self._end_all()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _start(self, command: list[str], env: dict[str, str], *, stdout: int | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            start_new_session=True,
            preexec_fn=self._before_exec(os.getpid()),  # noqa: PLW1509 # this process has no threads
        )

    def _before_exec(self, parent: int) -> Callable[[], None]:
        def prepare() -> None:
            self._libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
            for number in ENDS:  # forgets one that the terminal sent to all before this child had left its session
                signal.signal(number, signal.SIG_IGN)
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

        return prepare

    def _wait_for_answer(self, daemon: subprocess.Popen[bytes], path: str, within_s: float) -> bool:
        """Return whether the daemon answers with yes; False if it does not in time, ends, or a signal comes first."""
        deadline = time.monotonic() + within_s
        while daemon.poll() is None and not self._ended_by and time.monotonic() < deadline:
            if _says_yes(self._site.folders.api_socket, path):
                return True
            self._ended_by = _end_in(signal.sigtimedwait(WATCHED, LOOK_S))
        return False

    def _start_load(self, env: dict[str, str]) -> None:
        assert self._daemon is not None
        if not self._wait_for_answer(self._daemon, "/readyz", GPUS_OFFERED_WITHIN_S):
            say("no GPU is offered, so there is no demo load")
            return
        say(f"demo load: {', '.join(self._names)}; Ctrl-C ends everything")
        env = {name: value for name, value in env.items() if name not in _OF_ANOTHER_STORE}
        folders = self._site.folders
        here = {CARDS: os.path.join(folders.state, "simulated")}
        for i, name in enumerate(self._names):
            command = [sys.executable, "-m", "gpulockd.demo.worker", name, str(i)]
            self._load.append(self._start(command, env | here))

    def _watch(self, daemon: subprocess.Popen[bytes]) -> None:
        while daemon.poll() is None and not self._ended_by:
            self._ended_by = _end_in(signal.sigwaitinfo(WATCHED))

    def _end_all(self) -> None:
        for process in self._load:
            process.terminate()
        _wait_for(self._load, LOAD_ENDS_WITHIN_S)
        if self._daemon is not None:
            self._daemon.terminate()
            _wait_for([self._daemon], DAEMON_ENDS_WITHIN_S)
            if self._daemon.returncode < 0:  # it could not stop its store itself
                leftover.stop_store(self._site.folders)


def _told_end(code: int | None) -> int:
    """Say how the daemon has ended by itself, and return the demo's exit code."""
    if code is None:
        say(f"the daemon does not answer after {DAEMON_STARTS_WITHIN_S:g} s")
        return 1
    say(f"the daemon has ended ({f'signal {-code}' if code < 0 else f'exit code {code}'})")
    return max(code, 1)


def _is_one_place(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


def _end_in(info: signal.struct_siginfo | None) -> int:
    return info.si_signo if info is not None and info.si_signo in ENDS else 0


def _says_yes(api_socket: str, path: str) -> bool:
    with suppress(CommandError):
        with http.Daemon(api_socket) as daemon:
            daemon.get(path)
        return True
    return False


def _wait_for(processes: list[subprocess.Popen[bytes]], within_s: float) -> None:
    """Wait for processes that were asked to end; kill those that do not."""
    deadline = time.monotonic() + within_s
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
