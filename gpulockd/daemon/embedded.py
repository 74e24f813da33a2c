"""The private Valkey: started or adopted, watched, started again, stopped only when asked.

It outlives the daemon, so that holders keep their locks over a daemon's restart; a new daemon adopts it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.abc
import structlog
from redis.exceptions import RedisError

from gpulockd.clock import boottime_s
from gpulockd.daemon import marks, server
from gpulockd.daemon.folders import Folders, publish_store, withdraw_store
from gpulockd.daemon.storesocket import POLL_S, READY_DEADLINE_S, StoreSocket
from gpulockd.daemon.storeunit import StoreUnit
from gpulockd.errors import ConfigError, StoreUnavailable

STOP_DEADLINE_S, LONGEST_BACKOFF_S, QUICK_DEATH_S = 5.0, 10.0, 10.0

_log = structlog.get_logger(__name__)


class EmbeddedStore:
    """A Valkey or Redis server of our own on a unix socket, never on TCP.

    :param binary: the configured server program, None = find one
    :param socket_mode: permissions of its socket: 0o700 for the user alone, 0o770 for a group
    :param check_s: how often to look whether it can write its file (in seconds)
    :param unit: the systemd unit that runs it: then it is only adopted, never started
    """

    def __init__(
        self,
        folders: Folders,
        pool: str,
        *,
        binary: str | None = None,
        socket_mode: int = 0o700,
        check_s: float = 5.0,
        unit: StoreUnit | None = None,
    ) -> None:
        self.url = f"unix://{folders.store_socket}"
        self.pid = 0
        self.run_id = ""
        self.adopted = False
        self.fresh = False
        self._folders = folders
        self._socket = StoreSocket(folders.store_socket)
        self._pool = pool
        self._binary = binary
        self._socket_mode = socket_mode
        self._check_s = check_s
        self._unit = unit
        self._log_file = server.ServerLog(os.path.join(folders.state, "store.log"))
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._watched = False
        self._stopping = False
        self._quick_deaths = 0

    def __repr__(self) -> str:
        return f"<EmbeddedStore {self.url} pid={self.pid}{' adopted' if self.adopted else ''}>"

    async def start(self) -> bool:
        """Adopt the store of this state folder if it runs, else start it; return whether it is complete (`marks`).

        :raises ConfigError: if there is no server program, or another folder's store is on our socket
        :raises StoreUnavailable: if the server does not start or does not answer
        """
        try:
            os.makedirs(self._folders.store_folder, 0o700, exist_ok=True)
            lock = await self._lock_or_answer()
            try:
                complete = await self._adopt() if lock is None else await self._launch(lock)
            finally:
                if lock is not None:
                    os.close(lock)
            publish_store(self._folders, self._pool, self.url)
        except StoreUnavailable:
            raise
        except (OSError, RedisError) as trouble:
            raise self._failed(str(trouble)) from trouble
        return complete

    async def run(
        self,
        on_restart: Callable[[bool], Awaitable[None]],
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Watch the started store; when it dies start it again and await `on_restart(complete)`. Ends after `stop`."""
        self._watched = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch_writes)
                task_status.started()
                while True:
                    began_s = boottime_s()
                    await anyio.wait_readable(self._pidfd)
                    self._forget_process()
                    if self._stopping:
                        break
                    _log.error("store.died", pid=self.pid, message="the private store has died; starting it again")
                    self._quick_deaths = self._quick_deaths + 1 if boottime_s() - began_s < QUICK_DEATH_S else 0
                    await on_restart(await self._start_again())
                tasks.cancel_scope.cancel()
        finally:
            self._watched = False

    async def stop(self) -> None:
        """End the store with its file written, or kill it if it takes longer than 5 s."""
        self._stopping = True
        if self._pidfd < 0:
            return
        pidfd = os.dup(self._pidfd)
        try:
            # The answer to SHUTDOWN is the end of the connection; a refusal is dealt with by the deadline.
            with suppress(RedisError):
                await self._socket.ask("SHUTDOWN")
            with anyio.move_on_after(STOP_DEADLINE_S) as deadline:
                await anyio.wait_readable(pidfd)
            if deadline.cancelled_caught:
                _log.warning("store.killed", pid=self.pid, message="the private store did not stop in time")
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                await anyio.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        if not self._watched:  # else the watcher, which still waits on this descriptor, does it
            self._forget_process()
        withdraw_store(self._folders)
        _log.info("store.stopped", pid=self.pid, message="the private store has stopped")

    def close(self) -> None:
        """Let go of the store and leave it running."""
        self._forget_process()

    async def _lock_or_answer(self) -> int | None:
        """Return the lock of the store's folder, or None as soon as a store answers on our socket.

        A server holds the lock by inheritance, so two servers never write one file, whatever became of the socket.
        """
        if self._unit is not None:
            await self._unit.started(self._socket)
            return None
        path = os.path.join(self._folders.store_folder, "lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline_s = boottime_s() + READY_DEADLINE_S
        try:
            while await self._socket.state() == "absent":
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return os.dup(lock)
                if boottime_s() > deadline_s:
                    pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
                    raise StoreUnavailable(
                        f"the store of {self._folders.state} runs (pid {pid}) but not on {self._folders.store_socket}; "
                        f"use the --socket it was started with, or end it: kill {pid}"
                    )
                await anyio.sleep(POLL_S)
        finally:
            os.close(lock)
        return None

    async def _adopt(self) -> bool:
        await self._wait_ready()
        folder = await self._socket.folder()
        if folder != self._folders.real_store_folder:
            raise ConfigError(
                f"{self._folders.store_socket} belongs to the store in {folder}; start with its --state-dir, "
                "or choose another --socket"
            )
        self.adopted = True
        info = await self._identify()
        self.fresh = self._unit is not None and await self._unit.judged(self.run_id)
        flushed = any(f"cmdstat_{command}" in info for command in ("flushall", "flushdb", "swapdb"))
        complete = marks.was_complete(self._folders.store_folder, self.run_id) and not flushed
        _log.info("store.adopted", pid=self.pid, complete=complete, message="the private store runs already")
        return complete

    async def _launch(self, lock: int) -> bool:
        binary = server.find_binary(self._binary)
        self.adopted = False
        runtime, store = self._folders.runtime, self._folders.store_folder
        before = marks.read(runtime, store)
        self.fresh = marks.is_fresh(before)
        marks.set_used(runtime, store)
        whole = await self._spawn(binary, lock, load_truncated=False)
        if not whole:
            _log.error("store.file_torn", message="the store's file lacks its end; loading what there is")
            if not await self._spawn(binary, lock, load_truncated=True):
                raise self._failed("its file is torn in a way that it cannot load")
        await self._identify()
        complete = marks.judge(before, whole=whole)
        marks.set_loaded(store, self.run_id, complete)
        _log.info("store.started", pid=self.pid, complete=complete, binary=binary, message="the private store runs")
        return complete

    async def _spawn(self, binary: str, lock: int, *, load_truncated: bool) -> bool:
        """Start the server and wait until it answers; return False if it ended because its file is torn."""
        command = server.arguments(
            binary, self._folders.store_socket, self._folders.store_folder, self._socket_mode, load_truncated
        )
        scope = server.scope_prefix(self._pool, os.environ)
        ended = ""
        for prefix in [scope, []] if scope else [[]]:
            process = self._process = server.spawn(prefix + command, self._log_file, lock)
            os.truncate(lock, 0)
            os.pwrite(lock, f"{process.pid}\n".encode(), 0)
            try:
                if await self._wait_ready(process):
                    return True
            except BaseException:
                process.kill()
                process.wait()
                raise
            ended = f"it ended with {process.returncode}"
            if not prefix or self._log_file.has_begun():
                break
            _log.warning("store.scope_failed", message=f"no systemd scope: {self._log_file.last_line()}")
        if self._log_file.says_torn():
            return False
        raise self._failed(ended)

    async def _wait_ready(self, process: subprocess.Popen[bytes] | None = None) -> bool:
        """Wait until the store answers; return False if `process` ends first."""
        try:
            return await self._socket.wait_ready(lambda: process is not None and process.poll() is not None)
        except TimeoutError as silence:
            raise self._failed(str(silence)) from None

    async def _start_again(self) -> bool:
        """Start the store until it runs, at once and then with growing pauses; return whether it is complete."""
        failures = max(0, self._quick_deaths - 1)
        while True:
            if failures:
                await anyio.sleep(min(0.1 * 2**failures, LONGEST_BACKOFF_S))
            try:
                return await self.start()
            except StoreUnavailable as trouble:
                failures = min(failures + 1, 10)
                _log.error("store.start_failed", failures=failures, message=str(trouble))

    async def _watch_writes(self) -> None:
        """Keep the dirty mark while the store cannot write its file, so that its next start is not called complete."""
        dirty: bool | None = None
        while True:
            await anyio.sleep(self._check_s)
            try:
                info = await self._socket.persistence()
            except RedisError:
                continue  # it is starting again, and that start reads the mark
            failing = info.get("aof_last_write_status") != "ok" or info.get("aof_enabled") != "1"
            if failing != dirty:
                marks.set_dirty(self._folders.runtime, self._folders.store_folder, failing)
                dirty = failing
                if failing:
                    _log.error("store.write_failing", message="the store cannot write its file: is the disk full?")

    async def _identify(self) -> dict[str, Any]:
        """Take hold of the server behind the socket and return its INFO."""
        pid = self._socket.server_pid()
        if pid <= 0:
            raise ConfigError(f"the store on {self._folders.store_socket} runs in another PID namespace")
        self._close_pidfd()
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise self._failed("it died right after its start") from None
        self.pid = pid
        info = await self._socket.info()
        self.run_id = str(info["run_id"])
        return info

    def _failed(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"the private store does not run: {why}; its last words: {self._log_file.last_line()!r} "
            f"(all of them in {self._log_file.path})"
        )

    def _forget_process(self) -> None:
        self._close_pidfd()
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0  # it lives on by intention; without this Popen complains
        self._process = None

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
