"""Starts holders (`tests.system.holder`) against a daemon and waits for what they write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.daemons import Daemon
from tests.states import until
from tests.system.commands import ROOT, clean_env

INSIDE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Before a command: it runs in a pid namespace of its own, as in a container, and dies with who started it."""


class Holder:
    """One such program."""

    def __init__(self, folder: Path, name: str, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.name = name
        self.process = process

    def said(self, what: str) -> str | None:
        """What it has written (`in`, `lost`, `out`, `child`), None if nothing yet."""
        path = self.folder / f"{self.name}.{what}"
        return path.read_text() if path.exists() else None

    async def is_in(self, within_s: float = 30.0) -> int:
        """Wait until its body has begun; its token."""
        await until(lambda: self.said("in"), within_s)
        return int(self.said("in") or 0)

    def leave(self) -> None:
        """Let its body end."""
        (self.folder / f"{self.name}.leave").touch()

    async def is_out(self, within_s: float = 30.0) -> None:
        """Wait until its body has ended by itself."""
        await until(lambda: self.said("out") is not None, within_s)

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    @property
    def log(self) -> str:
        """What its logging said."""
        return (self.folder / f"{self.name}.log").read_text()


class Holders:
    """All of one test. No two of them may ever be on the card."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = env
        self.all: list[Holder] = []

    def start(self, name: str, mode: str = "async", wish: str = "", prefix: tuple[str, ...] = (), **env: str) -> Holder:
        """Start one; `prefix` is put before its command."""
        command = [*prefix, sys.executable, "-m", "tests.system.holder", str(self.folder), name, mode, wish]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=clean_env(**(self.env | env)), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        holder = Holder(self.folder, name, process)
        self.all.append(holder)
        return holder

    @property
    def overlapped(self) -> bool:
        """Whether two were on the card at once."""
        return (self.folder / "OVERLAP").exists()


@contextmanager
def holders(folder: Path, daemon: Daemon, **env: str) -> Iterator[Holders]:
    """Holders that find `daemon`; killed at the end."""
    folder.mkdir(exist_ok=True)
    started = Holders(folder, {"GPULOCKD_SOCKET": daemon.socket} | env)
    try:
        yield started
        assert not started.overlapped, "two were on the card at once"
    finally:
        for holder in started.all:
            holder.send(signal.SIGKILL)
            holder.process.wait()
            child = holder.said("child")
            if child:
                try:
                    os.kill(int(child), signal.SIGKILL)
                except ProcessLookupError:
                    continue
