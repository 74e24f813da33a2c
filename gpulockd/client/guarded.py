"""What a program needs to know of the guard of its host: where its socket may be, and what is said there."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from gpulockd import places
from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError

MOST_UNREAD = 1 << 18
_SAID = re.compile(rb'"at_ms":([0-9]{1,15})[,}]')


class GuardAway(GpuLockError):
    """The guard of this host cannot be reached: mount the daemon's runtime folder, or start `gpulockd serve`."""


class NotAdmitted(GpuLockError):
    """The guard has given the gpu to a later lease; ask again."""


class Admits(Protocol):
    """What a line needs of a guard."""

    def admit(self, entry: Entry, token: int, gpus: tuple[str, ...]) -> asyncio.Future[None]:
        """Ask to be let in. The future fails with `GuardAway` or `NotAdmitted`."""

    def is_asked(self, entry: Entry) -> bool:
        """Whether it owes an answer for this ticket, by whichever token."""

    def has_let_in(self, entry: Entry, token: int) -> bool:
        """Whether a yes to this grant still stands: "lost" may have come in the same breath."""

    def leave(self, entry: Entry) -> None:
        """Say that the body is over, or will not begin. Never blocks."""

    def vouches(self, entry: Entry) -> bool:
        """Whether the guard has let this lease in and stands; from any thread."""

    @property
    def is_alive(self) -> bool:
        """Whether it stands and has spoken lately."""

    async def stands(self) -> bool:
        """As `is_alive`, but looks for it first."""

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


def hello_of(session: Session) -> dict[str, Any]:
    """Who this process is to the guard, what it holds and has asked for, and its sessions that have ended."""
    entries = [entry for entry in session.table.all() if entry.session == session.id]
    held = [e for e in entries if e.state in ("held", "member") and not e.lost.is_set()]
    return {
        "verb": "hello",
        "session": session.id,
        "was": session.before,
        "as_of": max(session.highest_token, *(entry.token for entry in entries), 0),
        "held": [words_of(entry, entry.token, tuple(gpu.key for gpu in entry.gpus)) for entry in held],
        "known": [entry.id for entry in entries if entry not in held and entry.state != "ending"],
    }


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


def away_text(session: Session, hint: str) -> str:
    """That the guard of a session's pool cannot be reached, with the cure.

    :param hint: what the last try came to
    """
    folder = os.path.dirname(next(iter(sockets_of(session)), places.SYSTEM_RUNTIME))
    why = f" ({hint})" if hint else ""
    return (
        f"pool {session.pool} is guarded, and its guard cannot be reached{why}: in a container mount the "
        f"daemon's folder ({folder}) at the same place or set GPULOCKD_SOCKET; on the host start `gpulockd serve`"
    )


def knows_guard(session: Session) -> bool:
    """Whether the pool's last offer came with a guard, whatever the ledger thinks of it now."""
    published = session.defaults.get("guard")
    return isinstance(published, dict) and bool(published.get("folder"))


def fail(future: asyncio.Future[None] | None, error: Exception) -> None:
    """Let it fail, if it is not over: whoever waits is told, if anybody does."""
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()


def unread_in(connection: socket.socket) -> bytes | None:
    """What has come and is not read yet; None if the connection is broken or was hung up."""
    try:
        return connection.recv(MOST_UNREAD, socket.MSG_PEEK | socket.MSG_DONTWAIT) or None
    except BlockingIOError:
        return b""
    except OSError:
        return None


class LastWord:
    """When the guard has last spoken, on CLOCK_BOOTTIME of this process (in seconds).

    What counts is when a line was said, not when it is read: it lies unread while a process is stopped. The clocks of
    both may count from different moments (time namespaces); the guard's first answer was said after it was asked for.
    """

    def __init__(self) -> None:
        self.at_s = 0.0
        self._asked_at_s = 0.0
        self._apart_s: float | None = None
        self._unread = 0

    def asked(self) -> None:
        """A guard is asked who it is; perhaps another one than before."""
        self._asked_at_s, self._apart_s, self._unread = boottime_s(), None, 0

    def heard(self, said: Mapping[str, Any]) -> None:
        """A line was read."""
        at_ms = said.get("at_ms")
        if isinstance(at_ms, int):
            self._said(at_ms)
        elif self._apart_s is None:
            self.at_s = boottime_s()  # a guard of an earlier version does not say when
        self._unread = 0

    def waits_unread(self, lines: bytes) -> None:
        """These lines have come, and whoever shall read them is busy; from any thread."""
        said = _SAID.findall(lines)
        if said:
            self._said(int(said[-1]))
        elif self._apart_s is None and len(lines) != self._unread:
            self._unread, self.at_s = len(lines), boottime_s()

    def _said(self, at_ms: int) -> None:
        if self._apart_s is None:
            self._apart_s = self._asked_at_s - at_ms / 1000
        self.at_s = max(self.at_s, at_ms / 1000 + self._apart_s)
