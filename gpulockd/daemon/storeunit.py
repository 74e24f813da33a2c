"""The private store as a systemd unit of its own, which a restart of the daemon does not end.

`become` looks at what the last store left and turns this process into the server; `judge` runs once it answers and says
whether it is complete. The daemon adopts what runs (`StoreUnit`) and never starts one: systemd does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import anyio
import msgspec

from gpulockd import places
from gpulockd.clock import boottime_s
from gpulockd.daemon import marks, server
from gpulockd.daemon.folders import Folders, prepare, write_whole
from gpulockd.daemon.marks import Marks
from gpulockd.daemon.storesocket import POLL_S, READY_DEADLINE_S, StoreSocket
from gpulockd.errors import StoreUnavailable

VARIABLE = "GPULOCKD_STORE_UNIT"
"""In the daemon's environment: the unit that runs its private store."""

STARTING = "starting.json"
FRESH = "fresh"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A start that nobody has judged yet: what the folders said before it, and whether the file was whole."""

    before: Marks
    whole: bool


def unit_of(folders: Folders, environ: Mapping[str, str] | None = None) -> StoreUnit | None:
    """Return the unit that runs this daemon's store, or None if the daemon runs it itself."""
    name = (os.environ if environ is None else environ).get(VARIABLE)
    return StoreUnit(name, folders) if name else None


def become(folders: Folders, binary: str) -> NoReturn:
    """Turn this process into the store's server.

    :raises StoreUnavailable: if another server has the store's folder
    """
    prepare(folders)
    os.makedirs(folders.store_folder, 0o700, exist_ok=True)
    lock = _lock(folders)
    log = server.ServerLog(os.path.join(folders.state, "store.log"))
    start = next_start(folders, torn=log.says_torn())
    # One file a start: what it says is this start's word on its append-only file.
    if os.path.exists(log.path):
        os.replace(log.path, f"{log.path}.1")
    write_whole(os.path.join(folders.store_folder, STARTING), msgspec.json.encode(start).decode())
    marks.set_used(folders.runtime, folders.store_folder)
    mode = 0o660 if folders.runtime == places.SYSTEM_RUNTIME else 0o700
    command = server.arguments(binary, folders.store_socket, folders.store_folder, mode, not start.whole)
    with log.begin() as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.set_inheritable(lock, True)
    os.chdir("/")
    os.execv(binary, command)


def next_start(folders: Folders, *, torn: bool) -> Start:
    """Return what a start finds; `torn` says that the last one refused its file because the end is missing."""
    earlier = _starting(folders)
    if torn and earlier is not None:
        # That start served nobody, so what the folders said before it still holds.
        return Start(before=earlier.before, whole=False)
    return Start(before=marks.read(folders.runtime, folders.store_folder), whole=True)


async def judge(folders: Folders, server_pid: int | None = None) -> bool:
    """Wait until the store answers, and write down whether it is complete.

    :param server_pid: the server's process, whose end ends the waiting
    :raises StoreUnavailable: if it ends, or does not answer in time
    """
    socket = StoreSocket(folders.store_socket)
    try:
        if not await socket.wait_ready(lambda: server_pid is not None and not _lives(server_pid)):
            raise StoreUnavailable(f"the private store (pid {server_pid}) ended while it started")
    except TimeoutError as silence:
        raise StoreUnavailable(f"the private store does not run: {silence}") from None
    run_id = str((await socket.info())["run_id"])
    start = _starting(folders)
    if start is None:
        return marks.was_complete(folders.store_folder, run_id)
    complete = marks.judge(start.before, whole=start.whole)
    if marks.is_fresh(start.before):
        write_whole(os.path.join(folders.store_folder, FRESH), run_id)
    marks.set_loaded(folders.store_folder, run_id, complete)
    os.unlink(os.path.join(folders.store_folder, STARTING))
    return complete


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _lock(folders: Folders) -> int:
    path = os.path.join(folders.store_folder, "lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        holder = f"another server (pid {pid}) has the store of {folders.state}"
        raise StoreUnavailable(f"{holder}; end it: kill {pid}") from None
    os.truncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _starting(folders: Folders) -> Start | None:
    try:
        return msgspec.json.decode(Path(folders.store_folder, STARTING).read_bytes(), type=Start)
    except (OSError, msgspec.MsgspecError):
        return None


class StoreUnit:
    """The unit that runs the private store, as the daemon sees it."""

    def __init__(self, name: str, folders: Folders) -> None:
        self.name = name
        self._folder = folders.store_folder

    def __repr__(self) -> str:
        return f"<StoreUnit {self.name}>"

    async def started(self, socket: StoreSocket) -> None:
        """Wait until systemd has started the store.

        :raises StoreUnavailable: if it does not within 10 s
        """
        began_s = boottime_s()
        while await socket.state() == "absent":
            if boottime_s() - began_s > READY_DEADLINE_S:
                raise StoreUnavailable(
                    f"the private store does not run for {READY_DEADLINE_S:g} s; see: systemctl status {self.name}"
                )
            await anyio.sleep(POLL_S)

    async def judged(self, run_id: str) -> bool:
        """Wait until the unit has judged the server `run_id`; return whether nobody has used it yet.

        Only the first daemon that asks is told so. A judge that does not come leaves a store that is not complete.
        """
        began_s = boottime_s()
        while _text(os.path.join(self._folder, marks.LOADED)).split(" ")[0] != run_id:
            if boottime_s() - began_s > READY_DEADLINE_S:
                return False
            await anyio.sleep(POLL_S)
        path = os.path.join(self._folder, FRESH)
        fresh = _text(path) == run_id
        with suppress(FileNotFoundError):
            os.unlink(path)
        return fresh


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
