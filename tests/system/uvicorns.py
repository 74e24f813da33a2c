"""A web service under a real uvicorn, on a unix socket, and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import ROOT, clean_env


class Service:
    """A running service: what it has said, and the notes in its folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self.folder / "log").read_text()

    def noted(self, what: str) -> bool:
        """Whether a handler has noted that."""
        return (self.folder / what).exists()

    def go(self) -> None:
        """Let the handlers go on."""
        (self.folder / "go").touch()

    def client(self) -> httpx.AsyncClient:
        """A client with connections of its own."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.folder / "socket"))
        return httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60)


@contextmanager
def uvicorn(app: str, folder: Path, daemon: Daemon | None, **env: str) -> Iterator[Service]:
    """Start `python -m uvicorn APP` and wait until it serves; ends it as a service manager would.

    :param daemon: the daemon that it finds, None for none
    """
    folder.mkdir(exist_ok=True)
    found = {} if daemon is None else {"GPULOCKD_SOCKET": daemon.socket}
    command = [sys.executable, "-m", "uvicorn", app, "--uds", str(folder / "socket")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=clean_env(TEST_FOLDER=str(folder), **found, **env),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    service = Service(folder, process)
    try:
        until_blocking(lambda: "Application startup complete" in service.log or process.poll() is not None, 90)
        until_blocking((folder / "socket").exists)
        yield service
    finally:
        service.go()
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


async def hang_up(request: asyncio.Task[httpx.Response]) -> None:
    """Let the client of a request under way go."""
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request
