"""Who a process is: its pid and when it started. Everything that waits for one or signals one begins here."""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress

import msgspec

from gpulockd.errors import GpuLockError

NO_SUCH_PROCESS = {errno.ESRCH, errno.ENOENT, errno.EINVAL}
"""What `pidfd_open` says of a pid that is no process: gone, only a thread of one, or no pid at all."""


class HiddenProcess(GpuLockError):
    """/proc hides a living process: mount it without hidepid, or give the daemon that mount's gid (`ProtectProc=`)."""

    pid: int = 0


class Process(msgspec.Struct, frozen=True, order=True):
    """One process of this boot: `started_ticks` is its start in clock ticks since boot, which a reused pid lacks.

    It outlives exec, also one in a thread that is not the first. The boot is not part of it: who writes a process
    down for a later boot writes the boot id beside it.
    """

    pid: int
    started_ticks: int

    def __repr__(self) -> str:
        return f"<Process {self.pid} started {self.started_ticks}>"


def ticks_of(boottime_ms: int) -> int:
    """A moment of CLOCK_BOOTTIME (in ms) in the clock ticks in which the kernel tells when a process started."""
    return boottime_ms * os.sysconf("SC_CLK_TCK") // 1000


class Stat(msgspec.Struct, frozen=True):
    """What `/proc/PID/stat` says of one process; `cpu_ticks` is what all its threads have used, in clock ticks."""

    pid: int
    parent: int
    started_ticks: int
    state: str
    threads: int
    cpu_ticks: int
    name: str

    @property
    def process(self) -> Process:
        """The incarnation that this is said of."""
        return Process(self.pid, self.started_ticks)

    @property
    def is_dead(self) -> bool:
        """Whether all its threads have ended; a first thread that ended before the others shows as a zombie too."""
        return self.state in "ZX" and self.threads <= 1


def parse_stat(line: bytes) -> Stat:
    """Read one line of `/proc/PID/stat`; the name in it may hold spaces and parentheses."""
    head, _, tail = line.rpartition(b")")
    pid, _, name = head.partition(b"(")
    words = tail.split(None, 20)
    return Stat(
        pid=int(pid),
        parent=int(words[1]),
        started_ticks=int(words[19]),
        state=words[0].decode(),
        threads=int(words[17]),
        cpu_ticks=int(words[11]) + int(words[12]),
        name=name.decode(errors="replace"),
    )


def stat_of(pid: int) -> Stat | None:
    """What the kernel says of a pid now, None if /proc shows no such process."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError as trouble:
        if trouble.errno in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM):
            return None
        raise  # too many open files say nothing about the process
    try:
        line = os.read(descriptor, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(descriptor)
    return parse_stat(line) if line else None


def has_ended(pidfd: int) -> bool:
    """Whether the process behind a pidfd has ended with all its threads; one that nobody has waited for yet, too."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def identify(pid: int) -> Process | None:
    """Return the process that has this pid now, None if there is none.

    :raises HiddenProcess: if it lives and /proc hides it
    """
    pidfd = _open(pid)
    if pidfd is None:
        return None
    try:
        stat = stat_of(pid)
        if stat is None and not has_ended(pidfd):
            raise _hidden(pid)
        return stat.process if stat else None
    finally:
        os.close(pidfd)


def open_pidfd(process: Process) -> int | None:
    """Return a pidfd of exactly this process, None if it is gone. The caller closes it.

    :raises HiddenProcess: if the pid lives and /proc hides it
    :raises OSError: if no descriptor is left; that says nothing about the process
    """
    pidfd = _open(process.pid)
    if pidfd is None:
        return None
    try:
        # The descriptor came first: whatever it means, the pid was that one's until now, or the process is over.
        stat = stat_of(process.pid)
        if stat is None and not has_ended(pidfd):
            raise _hidden(process.pid)
    except BaseException:
        os.close(pidfd)
        raise
    if stat is None or stat.process != process:
        os.close(pidfd)
        return None
    return pidfd


def process_of(pidfd: int) -> Process | None:
    """Return whose pidfd this is (one from a socket, or from the service manager's store), None once it was reaped.

    :raises HiddenProcess: if the process lives outside this pid namespace, or /proc hides it
    """
    pid = _pid_of(pidfd)
    if pid < 0:
        return None
    stat = stat_of(pid) if pid else None
    if stat is None and not has_ended(pidfd):
        raise _hidden(pid)
    # Still the same pid after the look: so nobody else can have had it during the look.
    return stat.process if stat and _pid_of(pidfd) == pid else None


def alive(process: Process) -> bool:
    """Whether this very process runs still, with one thread at least.

    :raises HiddenProcess: if the pid lives and /proc hides it
    """
    pidfd = open_pidfd(process)
    if pidfd is None:
        return False
    try:
        return not has_ended(pidfd)
    finally:
        os.close(pidfd)


def send(process: Process, number: int) -> bool:
    """Signal exactly this process; return whether it was there. Whoever has its pid by now is left alone.

    :raises PermissionError: if it belongs to another user and CAP_KILL is missing
    """
    pidfd = open_pidfd(process)
    if pidfd is None:
        return False
    try:
        return send_through(pidfd, number)
    finally:
        os.close(pidfd)


def send_through(pidfd: int, number: int) -> bool:
    """Signal the process behind a pidfd of `open_pidfd`; return whether it was there.

    :raises PermissionError: if it belongs to another user and CAP_KILL is missing
    """
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
        return True
    return False


def _open(pid: int) -> int | None:
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as trouble:
        if trouble.errno in NO_SUCH_PROCESS:
            return None
        raise


def _pid_of(pidfd: int) -> int:
    """The pid behind a pidfd: -1 = reaped, 0 = outside this pid namespace."""
    with open(f"/proc/self/fdinfo/{pidfd}", "rb", buffering=0) as file:
        text = file.read(4096)
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(b"Pid:")), -1)


def _hidden(pid: int) -> HiddenProcess:
    return HiddenProcess(pid=pid)
