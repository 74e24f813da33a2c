"""The store: a real Valkey whose wall clock is the world's, spoken to in no virtual time, one real connection for each.

What a command publishes is with all subscribers before the next command is run.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import hiredis

from gpulockd.ledger.lua_files import script
from gpulockd.ledger.verbs import Call
from tests.faults.dst.network import Connection
from tests.faults.dst.world import World
from tests.servers import Server, pool_keys

T = TypeVar("T")

BEGINS_AT_S = 1_900_000_000
RAN_BEFORE_S = 1_000_000
"""How long before a schedule begins its server was started, by its own clock (in seconds)."""

ARGS = ("--save", "", "--appendonly", "no", "--databases", "1", "--maxmemory-policy", "noeviction")
REAL_DEADLINE_S = 20
MESSAGES = (b"message", b"smessage")
HERE = Path(__file__).parent


class VirtualClock:
    """The wall clock of the servers that run with `env`."""

    def __init__(self, folder: Path) -> None:
        """:raises subprocess.CalledProcessError: if there is no C compiler"""
        said, library = folder / "clock", folder / "clock.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, HERE / "clock.c"], check=True, timeout=60)
        said.write_bytes(b"\0" * mmap.PAGESIZE)
        with said.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.env = {"LD_PRELOAD": str(library), "VIRTUAL_CLOCK": str(said)}
        self.set(BEGINS_AT_S - RAN_BEFORE_S)

    def set(self, at_s: float) -> None:
        """Let it be that time (in seconds since 1970)."""
        struct.pack_into("<q", self._map, 0, round(at_s * 1e6))


class Backend:
    """The real server behind one schedule after the other."""

    def __init__(self, binary: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dst", dir="/tmp"))
        self.clock = VirtualClock(self.folder)
        self.server = Server(binary, args=ARGS)
        self._raw: socket.socket | None = None
        self._is_worn = True
        self._functions = b""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server."""
        self.hang_up()
        self.server.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ready(self) -> None:
        """Be as a server that nobody has ever used, with the functions loaded."""
        if self._is_worn:
            self.clock.set(BEGINS_AT_S - RAN_BEFORE_S)
            self.end()
            (self.server.folder / "dump.rdb").unlink(missing_ok=True)
            self.start()
            self._is_worn = False
        self.clock.set(BEGINS_AT_S)
        for words in (("CONFIG", "SET", "maxmemory", "0"), ("FLUSHALL",), ("CONFIG", "RESETSTAT")):
            self.ask(*words)
        if not self._functions:
            self.ask("FUNCTION", "LOAD", "REPLACE", script("open").text)
            self._functions = self.ask("FUNCTION", "DUMP")
        self.ask("FUNCTION", "RESTORE", self._functions, "FLUSH")

    def start(self) -> None:
        """Start the server; it reads its dump, if there is one."""
        with _environment(self.clock.env):
            self.server.start()

    def end(self) -> None:
        """End it at once; it is another server from now on."""
        self._is_worn = True
        self.hang_up()
        self.server.kill()

    def connect(self) -> socket.socket:
        """A new real connection."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", REAL_DEADLINE_S, 0))
        connection.connect(str(self.server.socket_path))
        return connection

    def ask(self, *words: Any) -> Any:
        """Run a command of the harness's own and return its reply."""
        if self._raw is None:
            self._raw = self.connect()
        return run(self._raw, hiredis.pack_command(words))[1]

    def hang_up(self) -> None:
        """Close the harness's own connection."""
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def keys(self, pool: str) -> dict[str, int]:
        """The keys of a pool and their time to live (in ms; -1: none)."""
        return pool_keys(self.server, pool)


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run(real: socket.socket, command: bytes) -> tuple[bytes, Any]:
    """Send a command, and return what came until its reply was whole, and the reply."""
    real.sendall(command)
    reader, said = hiredis.Reader(), bytearray()
    while True:
        came = real.recv(1 << 18)
        if not came:
            raise ConnectionError("the real server has hung up")
        said += came
        reader.feed(came)
        while (reply := reader.gets()) is not False:
            if not (isinstance(reply, list) and reply and reply[0] in MESSAGES):
                return bytes(said), reply


class Store:
    """The store of one schedule."""

    def __init__(self, world: World, backend: Backend, rate: float) -> None:
        """:param rate: seconds of its clock in a true second"""
        self.world = world
        self.backend = backend
        self.rate = rate
        self.jumped_s = 0.0
        self.stalled_until = 0.0
        self.up = True
        self.forgot = False
        """Whether it has ever lost something."""
        self.commands = 0
        self._real: dict[Connection, socket.socket] = {}
        self._read: dict[Connection, Any] = {}
        backend.ready()

    def set_clock(self) -> None:
        """Let the server's clock be what it is now."""
        self.backend.clock.set(BEGINS_AT_S + self.rate * self.world.now + self.jumped_s)

    # What comes over the network.

    def greet(self, connection: Connection) -> bool:
        """Somebody connects; False: nobody listens."""
        if self.up:
            self.set_clock()
            self._real[connection] = self.backend.connect()
            self._read[connection] = hiredis.Reader()
        return self.up

    def hear(self, connection: Connection, data: bytes) -> None:
        """Run what a process has sent."""
        read, real = self._read.get(connection), self._real.get(connection)
        if read is None or real is None:
            return
        read.feed(data)
        while (words := read.gets()) is not False:
            self.set_clock()
            said, _ = run(real, hiredis.pack_command(tuple(words)))
            self.commands += 1
            if words[0] == b"SUBSCRIBE":
                connection.is_ear = True
            if words[0] == b"FCALL":
                self._deliver(but=connection)
            if connection.dies_with_reply:
                connection.reset()
                return
            connection.reply(said)

    def hung_up(self, connection: Connection) -> None:
        """A connection has ended."""
        real = self._real.pop(connection, None)
        self._read.pop(connection, None)
        if real is not None:
            real.close()
            if connection.is_ear:
                self._settle()

    def _deliver(self, but: Connection | None = None) -> None:
        """Pass on what subscribers have been told."""
        ears = [one for one in self._real if one.is_ear and one is not but]
        if not ears:
            return
        self.backend.ask("PING")  # replies are written in one go, before the next command is read
        for ear in ears:
            real = self._real[ear]
            with contextlib.suppress(BlockingIOError):
                said = real.recv(1 << 18, socket.MSG_DONTWAIT)
                if said:
                    ear.reply(said)

    def _settle(self) -> None:
        """Wait until the server has seen that a subscriber is gone."""
        known = sum(one.is_ear for one in self._real)
        for _ in range(1000):
            clients = self.backend.ask("CLIENT", "LIST", "TYPE", "pubsub")
            if len(clients.splitlines()) <= known:
                return

    # Its faults.

    def save(self) -> None:
        """Write to the disk what is there now."""
        self.set_clock()
        self.backend.ask("SAVE")

    def come_back(self, down_s: float, *, keeps: bool) -> None:
        """It dies now, and comes back in `down_s` with what is on the disk, or with nothing."""
        self.up = False
        for connection in list(self._real):
            connection.reset()
        self.backend.end()
        if not keeps:
            self.forgot = True
            (self.backend.server.folder / "dump.rdb").unlink(missing_ok=True)
        self.world.after(down_s, self._start)

    def _start(self) -> None:
        self.set_clock()
        self.backend.start()
        self.up = True

    def ask(self, *words: Any) -> Any:
        """Run a command of the harness's own now; None if it is down."""
        if not self.up:
            return None
        self.set_clock()
        return self.backend.ask(*words)

    def call(self, call: Call[T]) -> T:
        """Run a script of the harness's own now, as a daemon beside the store would."""
        words = ("FCALL", call.script.function, len(call.keys.wire), *call.keys.wire, *call.args)
        reply = self.ask(*words)
        if isinstance(reply, Exception):  # somebody has flushed the functions
            self.ask("FUNCTION", "LOAD", "REPLACE", call.script.text)
            reply = self.ask(*words)
        self._deliver()
        return call.read(reply)

    def run_id(self) -> str:
        """Which server it is."""
        rows: list[str] = self.ask("INFO", "server").decode().splitlines()
        return next(row.removeprefix("run_id:") for row in rows if row.startswith("run_id:"))

    def end(self) -> None:
        """The schedule is over."""
        for real in self._real.values():
            real.close()
        self._real.clear()
