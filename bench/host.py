"""A host: a real daemon with simulated cards as a process of its own, in private folders, and questions to its API.

Its law: daemon, store and parties end with the `with` block, and with the measuring process, however that ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN_S = 60.0
STOPPED_WITHIN_S = 20.0
LOST_S = 60.0
"""Whatever says nothing for so long has failed (in seconds)."""

SERVE = ("-m", "gpulockd")


class Wire(http.client.HTTPConnection):
    """HTTP over a unix socket; one connection for many requests."""

    def __init__(self, path: str) -> None:
        super().__init__("127.0.0.1", timeout=LOST_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(LOST_S)
        self.sock.connect(self._path)

    def get(self, path: str) -> Any:
        """Ask, and read the JSON of the answer; a connection that was idle for too long is closed by the daemon."""
        try:
            self.request("GET", path)
            answer = self.getresponse()
        except (BrokenPipeError, http.client.RemoteDisconnected):
            self.close()
            self.request("GET", path)
            answer = self.getresponse()
        said = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(f"GET {path}: {answer.status} {said.decode()}")
        return json.loads(said)


class Party:
    """A process of a measurement that is told words on its standard input and says lines.

    It runs in a session of its own, so that Ctrl-C reaches the measurement alone; it ends when its input does.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [*ending_with_us("KILL"), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                cwd=ROOT, env=env, bufsize=0, start_new_session=True,
            )  # fmt: skip
        self._log = log
        self._unread = b""

    def tell(self, *words: object) -> None:
        """Say one line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)).encode() + b"\n")

    def hear(self, expected: str, within_s: float = LOST_S) -> str:
        """What follows the word `expected`, which begins its next line.

        :raises RuntimeError: if it says nothing within `within_s`, ends, or says another word
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + within_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                why = "has ended" if ready else f"says nothing for {within_s:g} s"
                raise RuntimeError(f"{self.process.args!r} {why}; it was to say {expected!r}\n{self._last_words()}")
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        word, _, rest = line.decode().partition(" ")
        if word != expected:
            raise RuntimeError(f"{self.process.args!r} says {line!r} instead of {expected!r}\n{self._last_words()}")
        return rest

    def close(self) -> None:
        """End it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _last_words(self) -> str:
        return self._log.read_text()[-3000:]


class Host:
    """A running `gpulockd serve` until the end of the `with` block.

    :param cards: how many simulated cards it offers
    :param url: its store; None: a private one
    :param pool: the pool's name; None: its own choice
    :param serve: what Python runs as `gpulockd`
    """

    def __init__(
        self, *, cards: int = 1, url: str | None = None, pool: str | None = None, serve: Sequence[str] = SERVE
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="glb-", dir="/tmp"))
        self._cards = cards
        self._url = url
        self._pool = pool
        self._serve = tuple(serve)
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
            # A pool on a young server that is not the daemon's own begins frozen, for as long as a session lives.
            self.until(lambda: all(pool["frozen_s"] == 0 for pool in self.get("/api/v1/pools")["pools"]))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None
        return self._process.pid

    def cpu_ns(self) -> int:
        """The CPU time of the daemon so far, all its threads' that live (in ns)."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has just ended
                total += int((task / "schedstat").read_text().split()[0])
        return total

    @property
    def socket(self) -> str:
        """The unix socket of its API."""
        return str(self.folder / "run/api.sock")

    @property
    def store(self) -> psutil.Process:
        """Its private store."""
        path = str(self.folder / "run")
        # The server names itself in its command line, and its socket there.
        found = [p for p in psutil.process_iter(["cmdline"]) if p.pid != self.pid and _names(p.info["cmdline"], path)]
        (server,) = [p for p in found if "valkey" in p.name() or "redis" in p.name()]
        return server

    def env(self, **more: str) -> dict[str, str]:
        """The environment of a program that finds this daemon."""
        return plain_environment() | {"GPULOCKD_SOCKET": self.socket, "PYTHONUNBUFFERED": "1"} | more

    def party(self, *words: str, prefix: Iterable[str] = (), **env: str) -> Party:
        """Start `python WORDS` as a program of this host; `prefix` is put before its command."""
        return Party([*prefix, sys.executable, *words], self.env(**env), self.folder / "parties.log")

    def get(self, path: str) -> Any:
        """Ask its API."""
        if self._wire is None:
            self._wire = Wire(self.socket)
        return self._wire.get(path)

    def until(self, holds: Callable[[], object], within_s: float = LOST_S) -> None:
        """Wait until `holds()` is true.

        :raises RuntimeError: if it is not within `within_s` seconds
        """
        deadline = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {within_s:g} s\n{self.log[-3000:]}")
            time.sleep(0.005)

    @property
    def log(self) -> str:
        """All that the daemon has said on standard error."""
        return (self.folder / "daemon.log").read_text()

    def close(self) -> None:
        """End daemon and store, and remove their folders."""
        if self._wire is not None:
            self._wire.close()
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.terminate()
                process.wait(STOPPED_WITHIN_S)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._kill_what_is_left()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        (self.folder / "config.yml").write_text("{}")
        command = [sys.executable, *self._serve, "serve", "--config", str(self.folder / "config.yml"), "--stop-store"]
        command += ["--socket", self.socket, "--state-dir", str(self.folder / "state"), "--listen", "127.0.0.1:0"]
        command += ["--simulate", str(self._cards)]
        command += ["--pool", self._pool] if self._pool else []
        command += ["--redis", self._url] if self._url else []
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*ending_with_us("TERM"), *command],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
                env=plain_environment() | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], READY_WITHIN_S)
        line = self._process.stdout.readline().decode() if ready else ""
        if not re.match(r"gpulockd \S+ ready: ", line):
            raise RuntimeError(f"the daemon did not start: {line}\n{self.log[-3000:]}")

    def _kill_what_is_left(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if process.pid != os.getpid() and _names(process.info["cmdline"], str(self.folder)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def ending_with_us(signal_name: str) -> list[str]:
    """What is put before a command that is to get this signal at the death of this process; nothing without setpriv."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", signal_name, "--"] if setpriv else []


def plain_environment() -> dict[str, str]:
    """This process's environment without settings of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("GPULOCKD_", "GPU_LOCK_"))}


def _names(words: Sequence[str] | None, path: str) -> bool:
    return any(path in word for word in words or ())
