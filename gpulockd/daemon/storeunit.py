"""The private store as a systemd unit of its own, which a restart of the daemon does not end.

`become` looks at what the last store left and turns this process into the server; `judge` runs once it answers and says
whether it is complete. The daemon's `UnitStore` adopts what runs and never starts one: systemd does.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import anyio
import msgspec

from gpulockd import places
from gpulockd.clock import boottime_s
from gpulockd.daemon import marks, server
from gpulockd.daemon.embedded import LOADING_DEADLINE_S, POLL_S, READY_DEADLINE_S, EmbeddedStore
from gpulockd.daemon.folders import Folders, prepare, write_whole
from gpulockd.daemon.marks import Marks
from gpulockd.daemon.storesocket import StoreSocket
from gpulockd.errors import StoreUnavailable

VARIABLE = "GPULOCKD_STORE_UNIT"
"""In the daemon's environment: the unit that runs its private store."""

STARTING = "starting.json"
FRESH = "fresh"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A start that nobody has judged yet: what the folders said before it, and whether the file was whole."""

    before: Marks
    whole: bool


def unit(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the unit that runs this daemon's store, or None if the daemon runs it itself."""
    return (os.environ if environ is None else environ).get(VARIABLE) or None


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
    await _answers(socket, server_pid)
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


async def _answers(socket: StoreSocket, server_pid: int | None) -> None:
    began_s = boottime_s()
    while (state := await socket.state()) != "ready":
        if server_pid is not None and not _lives(server_pid):
            raise StoreUnavailable(f"the private store (pid {server_pid}) ended while it started")
        allowed_s = LOADING_DEADLINE_S if state == "loading" else READY_DEADLINE_S
        if boottime_s() - began_s > allowed_s:
            raise StoreUnavailable(f"the private store does not answer for {allowed_s:g} s ({state})")
        await anyio.sleep(POLL_S)


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


class UnitStore(EmbeddedStore):
    """The private store that systemd runs: adopted, waited for when it dies, never started by the daemon."""

    async def _launch(self, lock: int) -> bool:
        fcntl.flock(lock, fcntl.LOCK_UN)  # it is the unit's to take
        began_s = boottime_s()
        while await self._socket.state() == "absent":
            if boottime_s() - began_s > READY_DEADLINE_S:
                name = unit() or "its unit"
                raise StoreUnavailable(
                    f"the private store does not run for {READY_DEADLINE_S:g} s; see: systemctl status {name}"
                )
            await anyio.sleep(POLL_S)
        return await self._adopt()

    async def _adopt(self) -> bool:
        await self._wait_ready()
        run_id = str((await self._socket.info())["run_id"])
        began_s = boottime_s()
        while not self._judged(run_id):  # a file rings for nobody
            if boottime_s() - began_s > READY_DEADLINE_S:
                break
            await anyio.sleep(POLL_S)
        complete = await super()._adopt()
        self.fresh = self._is_fresh(run_id)
        return complete

    def _judged(self, run_id: str) -> bool:
        said = _text(os.path.join(self._folders.store_folder, marks.LOADED))
        return said.split(" ")[0] == run_id

    def _is_fresh(self, run_id: str) -> bool:
        """Whether nobody has used it yet; a later daemon is told that somebody may have."""
        path = os.path.join(self._folders.store_folder, FRESH)
        fresh = _text(path) == run_id
        Path(path).unlink(missing_ok=True)
        return fresh


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
