"""What systemd hands to the daemon and keeps for it: listening sockets, and pidfds that outlive a crash.

A pidfd in the store goes on naming its one process: a daemon that comes back learns that a holder has died meanwhile,
and never takes a stranger with the same pid for it.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, MutableMapping

import msgspec

from gpulockd.daemon.notify import notify

FIRST = 3
"""The first descriptor that a service manager passes."""

LONGEST_NAME = 255


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """The listening sockets that systemd passed: the API's, and the guard's. None of one: the daemon makes its own."""

    api: list[socket.socket]
    guard: socket.socket | None


class Passed:
    """The descriptors that came with the start of this process, by name, until somebody takes them."""

    def __init__(self, descriptors: list[tuple[str, int]]) -> None:
        self._descriptors = descriptors

    def __repr__(self) -> str:
        return f"<Passed {', '.join(f'{name}={number}' for name, number in self._descriptors) or 'nothing'}>"

    def sockets(self, name: str) -> list[socket.socket]:
        """Return the listening sockets of that name ("guard", "api"), not blocking. They are the caller's to close."""
        taken = [socket.socket(fileno=number) for number in self._take(name)]
        for listener in taken:
            listener.setblocking(False)
        return taken

    def doors(self) -> Doors:
        """Return the sockets that the daemon listens on. They are the caller's to close."""
        guards = self.sockets("guard")
        for surplus in guards[1:]:
            surplus.close()
        return Doors(api=self.sockets("api"), guard=guards[0] if guards else None)

    def pidfds(self) -> Iterator[tuple[str, int]]:
        """Yield the (name, pidfd) pairs that a daemon before this one kept. They are the caller's to close."""
        found = [(name, number) for name, number in self._descriptors if pid_of(number) is not None]
        self._descriptors = [pair for pair in self._descriptors if pair not in found]
        yield from found

    def close(self) -> None:
        """Close what nobody took, and let the store forget it: a descriptor that no version knows stays for ever."""
        for name, number in self._descriptors:
            forget(name)
            os.close(number)
        self._descriptors = []

    def _take(self, name: str) -> list[int]:
        found = [number for known, number in self._descriptors if known == name]
        self._descriptors = [pair for pair in self._descriptors if pair[0] != name]
        return found


def receive(environ: MutableMapping[str, str] | None = None) -> Passed:
    """Take what the service manager passed to this process; once, and no child of ours inherits it."""
    env = os.environ if environ is None else environ
    meant_for, count = env.pop("LISTEN_PID", ""), env.pop("LISTEN_FDS", "")
    names = env.pop("LISTEN_FDNAMES", "").split(":")
    if meant_for != str(os.getpid()) or not count.isdigit():
        return Passed([])
    numbers = range(FIRST, FIRST + int(count))
    for number in numbers:
        fcntl.fcntl(number, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return Passed([(names[at] if at < len(names) else "unknown", number) for at, number in enumerate(numbers)])


def keep(name: str, descriptor: int) -> bool:
    """Let the service manager keep a copy of `descriptor` under `name`; return whether one was there to take it.

    Several descriptors may have one name. Beyond the unit's FileDescriptorStoreMax systemd drops what comes.
    """
    # FDPOLL=0: a pidfd whose process has ended hangs up, and systemd would drop what tells of the death.
    return notify("FDSTORE=1", f"FDNAME={_checked(name)}", "FDPOLL=0", descriptors=(descriptor,))


def forget(name: str) -> bool:
    """Let the service manager close all that it keeps under `name`; return whether one was there to hear it."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={_checked(name)}")


def pid_of(descriptor: int) -> int | None:
    """Return the pid behind a pidfd, -1 if its process has ended, or None if it is no pidfd."""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return None
    return int(lines["Pid"]) if "Pid" in lines else None


def _checked(name: str) -> str:
    if not 0 < len(name) <= LONGEST_NAME or not name.isascii() or not name.isprintable() or ":" in name:
        raise ValueError(f"{name!r}: the name of a stored descriptor is printable ASCII without a colon")
    return name
