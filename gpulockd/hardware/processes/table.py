"""All processes of this host in one pass over /proc, and what the memory of a single one says: its environment, its
command line.

`/proc/PID/stat` never waits; environ and cmdline wait for the memory lock of the process, which a driver that hangs
may hold for ever. So those are read in threads with a deadline, and a process that let one wait is not asked again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping

import anyio
import anyio.to_thread

from gpulockd.hardware.processes.identity import Process, Stat, stat_of

LEASE_VARIABLE = b"GPULOCKD_LEASE="

TABLE_DEADLINE_S = 10.0
READ_DEADLINE_S = 1.0
LONGEST_READ = 4 * 1024 * 1024

Table = Mapping[int, Stat]
"""Every process that a scan saw, by pid."""


def read_table() -> Table:
    """Return every process that /proc shows: 20 to 40 µs each, no moment's exact picture.

    A process that is born or dies during the scan may be missing, and a parent may be younger than its child when its
    pid changed hands in between; `runs.run_of` compares start times for that.
    """
    found: dict[int, Stat] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            stat = stat_of(int(name))
            if stat is not None:
                found[stat.pid] = stat
    return found


def read_family(pids: Collection[int]) -> Table:
    """Return these processes and all their living descendants, as the kernel links them: some 50 µs each.

    A kernel without `CONFIG_PROC_CHILDREN` tells none of the descendants. While processes of the family end, some may
    be missing: the next look, or `read_table`, has them.
    """
    found: dict[int, Stat] = {}
    queue = list(pids)
    while queue:
        pid = queue.pop()
        stat = stat_of(pid) if pid not in found else None
        if stat is not None:
            found[pid] = stat
            queue += _children_now(pid)
    return found


def tells_children() -> bool:
    """Whether this kernel tells the children of a process, so that `read_family` finds them."""
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _children_now(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as opened:
                children += map(int, _all_of(opened.fileno()).split())
    except OSError:
        return children
    return children


async def take_table(deadline_s: float = TABLE_DEADLINE_S) -> Table:
    """Return `read_table()` without stopping the loop meanwhile.

    :param deadline_s: in seconds
    :raises TimeoutError: if /proc does not answer within it
    """
    return (await take_timed(read_table, deadline_s))[0]


async def take_timed(read: Callable[[], Table], deadline_s: float = TABLE_DEADLINE_S) -> tuple[Table, float]:
    """Return what `read` returns, without stopping the loop meanwhile, and the CPU time that it took (in seconds).

    :raises TimeoutError: if /proc does not answer within the deadline (in seconds)
    """
    with anyio.fail_after(deadline_s):
        return await anyio.to_thread.run_sync(_timed, read, abandon_on_cancel=True, limiter=_own_thread())


def _timed(read: Callable[[], Table]) -> tuple[Table, float]:
    began_s = time.thread_time()
    table = read()
    return table, time.thread_time() - began_s


def user_of(process: Process) -> int | None:
    """The effective user id of a process, None if it is gone."""
    try:
        # The folder, unlike the files in it, shows the user also of programs that forbid core dumps.
        user = os.stat(f"/proc/{process.pid}").st_uid
    except OSError:
        return None
    now = stat_of(process.pid)
    return user if now is not None and now.process == process else None


class Memories:
    """Reads the environment and the command line of processes, a thread and a deadline for each."""

    def __init__(self, deadline_s: float = READ_DEADLINE_S) -> None:
        """:param deadline_s: how long one process may take, in seconds"""
        self._deadline_s = deadline_s
        self._silent: set[Process] = set()

    async def leases(self, processes: Collection[Process]) -> dict[Process, str]:
        """Return which lease each process was started with (`GPULOCKD_LEASE` in its environment), if any.

        What exec was given counts: a program that sets the variable in itself shows it in its children only. Other
        users' environments need CAP_SYS_PTRACE; without it they count as empty.
        """
        found = {}
        for process in processes:
            environ = await self._read(process, "environ")
            words = [word for word in environ.split(b"\0") if word.startswith(LEASE_VARIABLE)]
            if words:
                found[process] = words[0][len(LEASE_VARIABLE) :].decode(errors="replace")
        return found

    async def command(self, process: Process) -> list[str]:
        """Return the words of its command line; empty if it is gone, has none or does not answer."""
        text = await self._read(process, "cmdline")
        return text.decode(errors="replace").rstrip("\0").split("\0") if text else []

    async def _read(self, process: Process, file: str) -> bytes:
        if process in self._silent:
            return b""
        try:
            with anyio.fail_after(self._deadline_s):
                return await anyio.to_thread.run_sync(
                    read_file_of, process, file, abandon_on_cancel=True, limiter=_own_thread()
                )
        except TimeoutError:
            self._silent = {one for one in self._silent if stat_of(one.pid)} | {process}
            return b""


def read_file_of(process: Process, file: str) -> bytes:
    """The text of `/proc/PID/<file>` of exactly this process; empty if it is gone or not ours to read."""
    try:
        with open(f"/proc/{process.pid}/{file}", "rb", buffering=0) as opened:
            text = _all_of(opened.fileno())
    except OSError:
        return b""
    # Compared after the reading: an open file of a dead process reads empty, never as its successor's.
    now = stat_of(process.pid)
    return text if now is not None and now.process == process else b""


def _all_of(descriptor: int) -> bytes:
    parts, size = [], 0
    while size < LONGEST_READ and (part := os.read(descriptor, 65536)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _own_thread() -> anyio.CapacityLimiter:
    """A limiter for one call: a read that hangs must not take the place of another."""
    return anyio.CapacityLimiter(1)
