"""`guard.sock`: who the daemon is, and the door of the fence. One JSON object a line, each way.

Its law: no peer can end it, slow it or make it grow: lines, connections and what waits to be read are bounded, and a
wrong line is answered.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import anyio.abc
import structlog

from gpulockd.clock import boottime_s
from gpulockd.daemon.admission import LONGEST_LINE, Admit, Hello, Leave, Wrong, encode, read
from gpulockd.daemon.callers import Caller
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.sharing import Shares, room_for_callers
from gpulockd.hardware.processes.identity import HiddenProcess
from gpulockd.hardware.processes.peer import InvisiblePeer, peer_of

MOST_CONNECTIONS = 4096
"""Connections of all users together, as far as the descriptors go; one user may have half (`sharing`)."""

MOST_UNREAD = 1 << 20
"""Bytes that a peer may leave unread before its connection is closed."""

CROWDED = {
    "error": "your user has too many connections here; what is left is for others",
    "hint": "end programs that wait, or start fewer at a time",
}

IDLE_S = 60.0
"""How long a connection without a session may say nothing (in seconds)."""

BACKLOG = 1024

AT_ONCE = 16
"""Connections that are taken before the first of them is looked at; until then each costs a descriptor."""

_OPEN_MODE, _GROUP_MODE = 0o666, 0o660

_log = structlog.get_logger(__name__)

About = Callable[[], Mapping[str, Any]]


async def run(
    path: str,
    about: About,
    guard: Guard,
    *,
    secret: bool,
    alive_s: Callable[[], float],
    listener: socket.socket | None = None,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled.

    :param about: what to say of the daemon: pool, store, guarded, version
    :param secret: the store's URL holds a password, so only the user and the group may ask
    :param alive_s: how often to say that the guard runs, at this moment (in seconds)
    :param listener: the socket that the service manager has opened, instead of `path`
    """
    loop = asyncio.get_running_loop()
    open_ones: set[Conversation] = set()
    shares = Shares(room_for_callers(MOST_CONNECTIONS))
    bound = listener or _bound(path, _GROUP_MODE if secret else _OPEN_MODE)
    made = partial(Conversation, about, guard, open_ones, shares)
    server = await loop.create_unix_server(made, sock=bound, backlog=AT_ONCE)
    bound.listen(BACKLOG)
    try:
        task_status.started()
        # A guard that is stopped keeps its sockets open: who hears nothing of it does not trust it any more.
        while True:
            guard.callers.tell_all({"alive": True, "at_ms": _now_ms()})
            await anyio.sleep(alive_s())
    finally:
        server.close()
        for conversation in list(open_ones):
            conversation.close()


def _now_ms() -> int:
    """When a line is said (ms on CLOCK_BOOTTIME): it may be read much later."""
    return round(boottime_s() * 1000)


def _bound(path: str, mode: int) -> socket.socket:
    with suppress(FileNotFoundError):
        os.unlink(path)  # the state folder's lock says that no other daemon listens here
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    listener.bind(path)
    os.chmod(path, mode)
    return listener


class Conversation(asyncio.Protocol):
    """One connection: whole lines in, answers out, in order."""

    def __init__(self, about: About, guard: Guard, open_ones: set[Conversation], shares: Shares) -> None:
        """:param shares: how many connections each user has"""
        self._about = about
        self._guard = guard
        self._open_ones = open_ones
        self._shares = shares
        self._transport: asyncio.Transport | None = None
        self._caller: Caller | None = None
        self._unheard = b""
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the kernel who this is."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        try:
            peer = peer_of(transport.get_extra_info("socket"))
        except (InvisiblePeer, HiddenProcess) as hidden:
            return self._begin(Caller(None, getattr(hidden, "uid", -1), self._say, hint=hidden.message))
        except OSError as trouble:
            return self._refuse({"error": f"the kernel cannot say who you are: {trouble}", "hint": "try again soon"})
        if peer is None:
            return transport.abort()
        peer.close()
        return self._begin(Caller(peer.process, peer.uid, self._say))

    def _begin(self, caller: Caller) -> None:
        """Listen to a caller, unless its user has more connections than are left for all others."""
        if not self._shares.take(caller.uid):
            return self._refuse(CROWDED)
        self._caller = caller
        self._open_ones.add(self)
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.close)
        return None

    def _refuse(self, words: Mapping[str, Any]) -> None:
        """Say why nobody is heard here, and end it. What is unread at the end would take the words with it."""
        self._say(words)
        if self._transport is not None:
            with suppress(OSError):
                os.read(self._transport.get_extra_info("socket").fileno(), LONGEST_LINE)
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        *lines, self._unheard = (self._unheard + data).split(b"\n")
        if any(len(line) > LONGEST_LINE for line in (*lines, self._unheard)):
            self._say({"error": f"a line of more than {LONGEST_LINE} bytes", "hint": "send one JSON object a line"})
            return self.close()
        for line in lines:
            if self._caller is not None and self._transport is not None and not self._transport.is_closing():
                self._hear(line)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer has gone."""
        self._open_ones.discard(self)
        if self._idle is not None:
            self._idle.cancel()
        if self._caller is not None:
            self._shares.give_back(self._caller.uid)
            self._guard.gone(self._caller)

    def close(self) -> None:
        """End it once what was said is read."""
        if self._transport is not None:
            self._transport.close()

    def _hear(self, line: bytes) -> None:
        assert self._caller is not None
        try:
            said = read(line)
        except Wrong as wrong:
            return self._say(wrong.answer)
        if isinstance(said, Leave):
            if self._guard.on_leave is not None:
                self._guard.on_leave()
            return self._guard.leave(self._caller, said)
        answer: Mapping[str, Any] | None = None
        if isinstance(said, Hello):
            answer = {**self._about(), **self._guard.hello(self._caller, said), "at_ms": _now_ms()}
            if self._caller.hint:
                answer["hint"] = self._caller.hint
        elif isinstance(said, Admit):
            answer = self._guard.admit(self._caller, said)
        if self._caller.sessions and self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if answer is not None:
            self._say(answer)
        return None

    def _say(self, words: Mapping[str, Any]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(encode(words) + b"\n")
        if transport.get_write_buffer_size() > MOST_UNREAD:
            _log.warning("guard.peer_reads_nothing", message=f"{self._caller} reads nothing; its connection is closed")
            transport.abort()
