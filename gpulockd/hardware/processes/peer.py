"""Who is at the other end of a unix socket, as the kernel says it, never as the peer does."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import Protocol

import msgspec

from gpulockd.errors import GpuLockError
from gpulockd.hardware.processes.identity import Process, identify, process_of

SO_PEERPIDFD = 77
"""Linux 6.5 and newer; this Python has no name for it."""

_CREDENTIALS = struct.Struct("iII")
_NOT_KNOWN_HERE = {errno.ENOPROTOOPT, errno.EOPNOTSUPP}
_PEER_GONE = {errno.ESRCH, errno.EINVAL, errno.ENODATA, errno.ENOTCONN}


class InvisiblePeer(GpuLockError):
    """The program is outside the daemon's pid namespace: run the daemon on the host, or in a --pid=host container."""

    uid: int = 0
    gid: int = 0


class Asked(Protocol):
    """A socket that options can be asked of: a plain one, or what a stream's `raw_socket` gives."""

    def fileno(self) -> int:
        """Its descriptor."""

    def getsockopt(self, level: int, option: int, size: int = ..., /) -> bytes | int:
        """As `socket.socket.getsockopt`."""


class Peer(msgspec.Struct, frozen=True):
    """The process that connected, with its user and group then. The pidfd is the caller's: hand it on or `close`."""

    process: Process
    uid: int
    gid: int
    pidfd: int

    @property
    def pid(self) -> int:
        """Its pid as this daemon sees it; a program in a container of its own calls itself another number."""
        return self.process.pid

    def close(self) -> None:
        """Give the pidfd back to the kernel."""
        os.close(self.pidfd)


def peer_of(connected: Asked | socket.socket, *, ask_pidfd: bool = True) -> Peer | None:
    """Return who connected this unix socket, None if that process has gone. Ask right after accepting.

    :param ask_pidfd: False = as on kernels before 6.5, for tests
    :raises InvisiblePeer: if the peer has no pid in this pid namespace
    :raises HiddenProcess: if /proc hides it
    """
    said = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    assert isinstance(said, bytes)
    pid, uid, gid = _CREDENTIALS.unpack(said)
    if pid == 0:
        raise InvisiblePeer(uid=uid, gid=gid)
    pidfd = _pidfd_from(connected) if ask_pidfd else None
    if pidfd is None:
        return _looked_up(connected, pid, uid, gid)
    if pidfd < 0:
        return None
    try:
        process = process_of(pidfd)
    except BaseException:
        os.close(pidfd)
        raise
    if process is None:
        os.close(pidfd)
        return None
    return Peer(process, uid, gid, pidfd)


def _pidfd_from(connected: Asked | socket.socket) -> int | None:
    """The pidfd that the kernel took when the peer connected; -1 = the peer is gone, None = an older kernel."""
    try:
        said = connected.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as trouble:
        if trouble.errno in _NOT_KNOWN_HERE:
            return None
        if trouble.errno in _PEER_GONE:
            return -1
        raise
    assert isinstance(said, bytes)
    return int.from_bytes(said, "little" if struct.pack("=H", 1)[0] else "big", signed=True)


def _looked_up(connected: Asked | socket.socket, pid: int, uid: int, gid: int) -> Peer | None:
    """The peer by its pid, for kernels that give no pidfd.

    The pid could have changed hands since the peer connected. A socket that is not hung up says that somebody holds
    its other end still; a child may hold it for a dead parent, so the user must be the one that connected too. What
    remains is a process of the same user, which that user could signal anyway.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        poll = select.poll()
        poll.register(connected.fileno(), 0)  # 0 still tells of hang-ups and errors
        hung_up = bool(poll.poll(0))
        process = None if hung_up else identify(pid)
        if process is not None and process_of(pidfd) == process and uid in users_of(pid):
            return Peer(process, uid, gid, pidfd)
    except BaseException:
        os.close(pidfd)
        raise
    os.close(pidfd)
    return None


def users_of(pid: int) -> frozenset[int]:
    """The real, effective, saved and file-system user ids of a process; none if it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            found = next((line for line in file if line.startswith(b"Uid:")), b"Uid:")
    except OSError:
        return frozenset()
    return frozenset(int(word) for word in found.split()[1:])
