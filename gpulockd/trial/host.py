"""The private host of one configuration: a daemon with simulated GPUs and a store of its own, in a temporary folder."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpulockd.cli import http
from gpulockd.cli.child import PR_SET_PDEATHSIG
from gpulockd.cli.talk import CommandError
from gpulockd.daemon import folders
from gpulockd.daemon.storesocket import StoreSocket
from gpulockd.demo import leftover
from gpulockd.errors import GpuLockError
from gpulockd.settings import Tree
from gpulockd.trial.deaf import Deaf
from gpulockd.trial.party import Party

READY_WITHIN_S = 60.0
ENDS_WITHIN_S = 20.0
LOOK_S = 0.05
LAST_LINES, LONGEST_LINE = 4, 200

EXERCISED = ("gpu_lock", "gpu_lock_monitor", "tasks", "session", "queue", "settle", "gpus")
"""Blocks that a trial's daemon takes from a configuration; where it is and whom it tells is its own."""


class TrialBroke(GpuLockError):
    """The trial itself could not run, so it says nothing about either configuration."""


class Host:
    """A daemon under one configuration; `with` it stands, and nothing of it stays.

    :param tree: the blocks of its config.yml
    :param gpus: how many simulated cards
    :param polling: whether programs are cut off from notifications once they have begun (`cut`)
    """

    def __init__(self, name: str, tree: Tree, *, gpus: int, polling: bool = False) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="gpulockd-trial-"))
        self._folders = folders.resolve(str(self.folder), str(self.folder / "state"))
        self._tree = {key: value for key, value in tree.items() if key in EXERCISED}
        self._gpus = gpus
        self._daemon: subprocess.Popen[bytes] | None = None
        self._deaf = Deaf(self._folders.store_socket, str(self.folder / "deaf.sock")) if polling else None
        self._parties: list[Party] = []
        self._store_pid = 0

    def __repr__(self) -> str:
        return f"<Host {self.name} in {self.folder}>"

    @property
    def socket(self) -> str:
        """The unix socket of its API."""
        return self._folders.api_socket

    async def __aenter__(self) -> Self:
        try:
            (self.folder / "config.yml").write_text(json.dumps(self._tree))
            self._daemon = self._start_daemon()
            await self._ready(self._daemon)
            self._store_pid = StoreSocket(self._folders.store_socket).server_pid()
            if self._deaf is not None:
                await self._deaf.listen()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def party(self, module: str) -> Party:
        """Start a Python module as a program of this host, and wait until it has met the daemon."""
        party = await Party.start([sys.executable, "-m", module], self._environment(), before=dies_with(os.getpid()))
        self._parties.append(party)
        await party.said()
        return party

    def cut(self) -> None:
        """Let the programs hear no notification any more, so that they poll."""
        if self._deaf is not None:
            self._deaf.cut()

    def store_cpu_s(self) -> float:
        """The CPU time of the store's main thread so far (in seconds), as the kernel has counted it."""
        return int(Path(f"/proc/{self._store_pid}/schedstat").read_text().split()[0]) / 1e9

    def ask(self, path: str) -> Tree:
        """What the daemon's API answers."""
        with http.Daemon(self.socket) as daemon:
            return daemon.get(path)

    def _start_daemon(self) -> subprocess.Popen[bytes]:
        return _start(self._words(), self.folder)

    def _words(self) -> list[str]:
        words = [sys.executable, "-m", "gpulockd", "serve", "--config", str(self.folder / "config.yml")]
        words += ["--socket", str(self.folder), "--state-dir", self._folders.state, "--redis", "embedded"]
        return [*words, "--listen", "127.0.0.1:0", "--simulate", str(self._gpus), "--stop-store"]

    def _environment(self) -> dict[str, str]:
        env = plain_environment() | {"GPULOCKD_SOCKET": self.socket}
        if self._deaf is not None:
            note = json.loads(Path(self._folders.store_note).read_text())
            env |= {"GPULOCKD_REDIS_URL": f"unix://{self._deaf.path}", "GPULOCKD_POOL": note["pool"]}
        return env

    async def _ready(self, daemon: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_WITHIN_S
        while not await asyncio.to_thread(self._answers):
            if daemon.poll() is not None or loop.time() > deadline:
                raise TrialBroke(f"the trial's daemon under {self.name} did not start: {self._last_words()}")
            await asyncio.sleep(LOOK_S)

    def _answers(self) -> bool:
        try:
            self.ask("/readyz")
        except CommandError:
            return False
        return True

    def _last_words(self) -> str:
        """What the daemon's log says at its end, without its fields."""
        lines = (self.folder / "daemon.log").read_text(errors="replace").strip().split("\n")
        return " / ".join(_message_of(line) for line in lines[-LAST_LINES:]) or "it said nothing"

    async def _end(self) -> None:
        await asyncio.gather(*(party.end() for party in self._parties))
        if self._deaf is not None:
            await self._deaf.aclose()
        if self._daemon is not None:
            await asyncio.to_thread(_stop, self._daemon)
            leftover.stop_store(self._folders)
        self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _message_of(line: str) -> str:
    try:
        said = json.loads(line)
    except ValueError:
        return line[:LONGEST_LINE]
    if not isinstance(said, dict):
        return line[:LONGEST_LINE]
    causes = said.get("exception")
    why = f": {_cause_of(causes)}" if causes else ""
    return f"{said.get('message', '')}{why}"[:LONGEST_LINE]


def _cause_of(traces: list[dict[str, Any]]) -> str:
    """The innermost error of what the log shows of an exception."""
    innermost = traces[-1]
    while groups := innermost.get("exceptions"):
        innermost = groups[0][-1]
    return f"{innermost.get('exc_type')}: {innermost.get('exc_value')}"


def plain_environment() -> dict[str, str]:
    """The environment without what names a daemon, a store, a lease or a setting."""
    ours = ("GPULOCKD_", "GPU_LOCK_")
    others = {"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
    return {name: value for name, value in os.environ.items() if not name.startswith(ours) and name not in others}


def _start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "daemon.log").open("ab") as log:
        return subprocess.Popen(
            words,
            env=plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=dies_with(os.getpid()),  # noqa: PLW1509 # it only calls the kernel
        )


def dies_with(parent: int) -> Callable[[], None]:
    """Ask the kernel to end the child with its parent, and Ctrl-C to leave it alone."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
