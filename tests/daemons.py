"""A real daemon as a process of its own, in private folders, and a small HTTP client for it.

Its law: neither daemon nor private store outlives the block that started them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import h11
import psutil
import redis

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN_S = 60.0
STOPPED_WITHIN_S = 30.0
ANSWERED_WITHIN_S = 30.0
STORE_WAS_LATE = "gave no answer within"

QUICK = {"session": {"ttl": 2.0, "keepalive": 0.3, "rpc_deadline": 0.4, "margin": 0.1, "claim_window": 0.5}}
"""Settings under which a dead process is noticed within two seconds."""

CALM = {"session": {"ttl": 20.0, "keepalive": 0.3, "rpc_deadline": 5.0, "margin": 0.1, "claim_window": 5.0}}
"""Settings under which a machine that stands still for seconds ends no session and lets no command fail."""

STEADY: dict[str, Any] = {
    "session": {"ttl": 20.0, "keepalive": 0.5, "rpc_deadline": 5.0, "margin": 0.2, "claim_window": 5.0},
    "settle": {"grace": 60.0},
}
"""Settings under which a machine that stands still for seconds costs nobody a lease, an answer or, where a test holds
leases itself and loses them, its life."""


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


@dataclass
class Wire:
    """An open HTTP request whose answer comes in pieces. `aclose` hangs up."""

    stream: anyio.abc.ByteStream
    wire: h11.Connection
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    rest: bytes = b""

    async def event(self) -> Any:
        """The next part of the answer."""
        while True:
            try:
                found = self.wire.next_event()
            except h11.RemoteProtocolError:  # the daemon was killed in the middle of its answer
                return h11.ConnectionClosed()
            if found is not h11.NEED_DATA:
                return found
            try:
                data = await self.stream.receive(65536)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                data = b""
            self.wire.receive_data(data)

    async def line(self, within_s: float = ANSWERED_WITHIN_S) -> bytes | None:
        """The next line of the body, None at its end."""
        with anyio.fail_after(within_s):
            while b"\n" not in self.rest:
                found = await self.event()
                if not isinstance(found, h11.Data):
                    return None
                self.rest += bytes(found.data)
        line, self.rest = self.rest.split(b"\n", 1)
        return line

    async def said(self, within_s: float = ANSWERED_WITHIN_S) -> Any:
        """The next line, read as JSON; None at the end."""
        line = await self.line(within_s)
        return None if line is None else json.loads(line)

    async def until(self, state: str, within_s: float = ANSWERED_WITHIN_S) -> Any:
        """The first line of that state."""
        with anyio.fail_after(within_s):
            while True:
                said = await self.said()
                assert said is not None, f"the answer ended before {state!r}"
                if said["state"] == state:
                    return said

    async def ends(self, within_s: float = ANSWERED_WITHIN_S) -> None:
        """Read on until the answer ends."""
        with anyio.fail_after(within_s), contextlib.suppress(h11.RemoteProtocolError):
            while isinstance(await self.event(), h11.Data):
                continue

    async def aclose(self) -> None:
        """Hang up."""
        await self.stream.aclose()


@dataclass
class Daemon:
    """A running daemon: `socket` of the API, `url` of its HTTP, `pool`, and the line that it said when ready."""

    process: subprocess.Popen[bytes]
    runtime: Path
    state: Path
    ready_line: str
    started_in_s: float
    pool: str
    socket: str
    url: str
    wires: list[Wire] = field(default_factory=list)

    @property
    def store_url(self) -> str:
        """The private store."""
        return f"unix://{self.runtime / 'store.sock'}"

    @property
    def token(self) -> str:
        """The API token."""
        return (self.state / "api-token").read_text().strip()

    @property
    def log(self) -> str:
        """All that it has said on standard error."""
        return (self.runtime.parent / "daemon.log").read_text()

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.url.rpartition(":")[2])

    async def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        tcp: bool = False,
        raw: bytes | None = None,
    ) -> Wire:
        """Send a request and return as soon as its answer has begun."""
        stream: anyio.abc.ByteStream
        if tcp:
            stream = await anyio.connect_tcp("127.0.0.1", self.port)
        else:
            stream = await anyio.connect_unix(self.socket)
        content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        given = {"host": f"127.0.0.1:{self.port}", "content-length": str(len(content))} | (headers or {})
        wire = h11.Connection(h11.CLIENT)
        request = h11.Request(method=method, target=path, headers=[(n, v) for n, v in given.items() if v != "-"])
        await stream.send((wire.send(request) or b"") + (wire.send(h11.Data(content)) or b""))
        wire.send(h11.EndOfMessage())
        opened = Wire(stream, wire)
        self.wires.append(opened)
        with anyio.fail_after(ANSWERED_WITHIN_S):
            begun = await opened.event()
        assert isinstance(begun, h11.Response), begun
        opened.status = begun.status_code
        opened.headers = {name.decode(): value.decode() for name, value in begun.headers}
        return opened

    async def ask(self, method: str, path: str, body: Any = None, **how: Any) -> Reply:
        """Send a request and return its whole answer."""
        opened = await self.open(method, path, body, **how)
        whole = b""
        with anyio.fail_after(ANSWERED_WITHIN_S):
            while isinstance(part := await opened.event(), h11.Data):
                whole += bytes(part.data)
        await opened.aclose()
        return Reply(opened.status, opened.headers, whole)

    async def get(self, path: str, **how: Any) -> Reply:
        """GET over TCP, as a browser would."""
        return await self.ask("GET", path, tcp=True, **how)

    async def kill(self) -> None:
        """End it at once (SIGKILL); its store lives on."""
        self.process.kill()
        await self.ended()

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as a service manager would, and return its exit code."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self, within_s: float = STOPPED_WITHIN_S) -> int:
        """Wait for its end and return its exit code."""
        return await anyio.to_thread.run_sync(lambda: self.process.wait(within_s))


@asynccontextmanager
async def daemon_folder() -> AsyncIterator[Path]:
    """A short folder for the daemons that are started in it one after the other; their store is killed at the end."""
    base = Path(tempfile.mkdtemp(prefix="gld-", dir="/tmp"))
    try:
        yield base
    finally:
        _kill_all_of(base)
        shutil.rmtree(base, ignore_errors=True)


@asynccontextmanager
async def running_daemon(
    *args: str,
    config: dict[str, Any] | None = None,
    base: Path | None = None,
    env: dict[str, str] | None = None,
    simulate: int = 2,
    prefix: Sequence[str] = (),
) -> AsyncIterator[Daemon]:
    """Start `gpulockd serve` and wait until it says that it is ready; end it and its store afterwards.

    :param args: further options
    :param config: what its config.yml says
    :param base: the folder of an earlier daemon (`daemon_folder`), whose store then lives on
    :param prefix: put before its command
    """
    async with contextlib.AsyncExitStack() as stack:
        folder = base if base is not None else await stack.enter_async_context(daemon_folder())
        began_s = anyio.current_time()
        process, line = await _started(folder, *args, config=config, env=env, simulate=simulate, prefix=prefix)
        try:
            found = re.fullmatch(r"gpulockd \S+ ready: pool (\S+), .*, (https?://\S+), (\S+)", line)
            assert found is not None, line
            daemon = Daemon(
                process=process,
                runtime=folder / "run",
                state=folder / "state",
                ready_line=line,
                started_in_s=anyio.current_time() - began_s,
                pool=found[1],
                url=found[2],
                socket=found[3],
            )
            try:
                yield daemon
            finally:
                for wire in daemon.wires:
                    await wire.aclose()
        finally:
            end(process)


async def _started(folder: Path, *args: str, **how: Any) -> tuple[subprocess.Popen[bytes], str]:
    """Start a daemon and wait for its line. Where its store stands still just then it refuses to; then once more."""
    for tries_left in (2, 1, 0):
        process = start_daemon(folder, *args, **how)
        try:
            return process, await _ready_line(process, folder)
        except BaseException as failed:
            end(process)
            if not (tries_left and isinstance(failed, AssertionError) and STORE_WAS_LATE in str(failed)):
                raise
    raise AssertionError("no try was left")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a daemon in order, or at once if it does not heed that."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPPED_WITHIN_S)
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def start_daemon(
    folder: Path,
    *args: str,
    config: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    simulate: int = 2,
    prefix: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """Start `gpulockd serve` in `folder`, on a free port unless `args` name one, and do not wait for it."""
    (folder / "config.yml").write_text(json.dumps(config or {}))
    command = [*prefix, sys.executable, "-m", "gpulockd", "serve", "--config", str(folder / "config.yml")]
    command += ["--socket", str(folder / "run/api.sock"), "--state-dir", str(folder / "state")]
    command += ["--simulate", str(simulate), *([] if "--listen" in args else ["--listen", "127.0.0.1:0"]), *args]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GPULOCKD_", "GPU_LOCK_"))}
    with (folder / "daemon.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=kept | {"PYTHONUNBUFFERED": "1"} | (env or {}),
        )


@contextlib.contextmanager
def standing_still(daemon: Daemon) -> Iterator[None]:
    """Let its private store answer nothing for the time of the block."""
    with redis.Redis.from_url(daemon.store_url) as asked:
        store = psutil.Process(int(asked.info("server")["process_id"]))
    store.suspend()
    try:
        yield
    finally:
        store.resume()


async def eventually(holds: Callable[[], Any], within_s: float = ANSWERED_WITHIN_S) -> None:
    """Wait until `holds()` (plain or awaitable) is true."""
    with anyio.fail_after(within_s):
        while True:
            found = holds()
            if hasattr(found, "__await__"):
                found = await found
            if found:
                return
            await anyio.sleep(0.02)


async def _ready_line(process: subprocess.Popen[bytes], folder: Path) -> str:
    assert process.stdout is not None
    with anyio.move_on_after(READY_WITHIN_S):
        await anyio.wait_readable(process.stdout)
        line = process.stdout.readline().decode().strip()
        if line:
            return line
    raise AssertionError(f"the daemon did not start:\n{(folder / 'daemon.log').read_text()[-4000:]}")


def _kill_all_of(folder: Path) -> None:
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()) and process.pid != os.getpid():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                _await_end(process)


def _await_end(process: psutil.Process) -> None:
    """Wait until a killed process runs no longer; who has to reap it may take its time."""
    deadline = time.monotonic() + 20
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.005)
