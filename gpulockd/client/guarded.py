"""What a program needs to know of the guard of its host: where its socket may be, and what is said there."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from gpulockd import places
from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.errors import GpuLockError


class GuardAway(GpuLockError):
    """The guard of this host cannot be reached: mount the daemon's runtime folder, or start `gpulockd serve`."""


class NotAdmitted(GpuLockError):
    """The guard has given the gpu to a later lease; ask again."""


class Admits(Protocol):
    """What a line needs of a guard."""

    def admit(self, entry: Entry, token: int, gpus: tuple[str, ...]) -> asyncio.Future[None]:
        """Ask to be let in. The future fails with `GuardAway` or `NotAdmitted`."""

    def leave(self, entry: Entry) -> None:
        """Say that the body is over, or will not begin. Never blocks."""

    def vouches(self, entry: Entry) -> bool:
        """Whether the guard has let this lease in and stands; from any thread."""

    @property
    def is_alive(self) -> bool:
        """Whether it stands and has spoken lately."""

    def descriptors(self) -> list[int]:
        """Open sockets, for a forked child to close."""

    def close(self) -> None:
        """The loop closes."""

    def look(self) -> None:
        """Connect if the pool is guarded and something is held; call it in the loop."""


def words_of(entry: Entry, token: int, gpus: tuple[str, ...]) -> dict[str, Any]:
    words: dict[str, Any] = {"id": entry.id, "token": token, "gpus": gpus, "exclusive": entry.ask.wants.exclusive}
    if entry.state == "member" and entry.of:
        words["of"] = entry.of
    words["assertion"] = entry.assertion(token, gpus)
    return words


def sockets_of(session: Session) -> list[str]:
    """Where the guard's socket may be: beside the daemon's that was found, where the pool says, the usual places."""
    folders = []
    if session.socket:
        folders.append(os.path.dirname(session.socket))
    published = session.defaults.get("guard")
    if isinstance(published, dict) and isinstance(published.get("folder"), str):
        folders.append(published["folder"])
    with suppress(OSError):
        runtime = places.find_runtime()
        if runtime is not None:
            folders.append(runtime[0])
    return list(dict.fromkeys(str(Path(folder) / places.GUARD_SOCKET) for folder in folders))


def unread_in(connection: socket.socket) -> int:
    """How many bytes have come that the loop has not read: while it is blocked they are all that is heard."""
    try:
        return int.from_bytes(fcntl.ioctl(connection, termios.FIONREAD, b"\0" * 4), "little")
    except (OSError, ValueError):
        return 0
