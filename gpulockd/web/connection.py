"""One connection of the API: who is at its other end, and how long it may take to say what it wants.

Its law: nobody who is slow, silent or many can keep others out. What is refused here is a problem with a hint too.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gpulockd.web.answering import HeadWithBody
from gpulockd.web.auth import Peer
from gpulockd.web.problems import Problem, problem, raw_answer, refusal

MOST_CONNECTIONS = 2000
MOST_OF_STRANGERS = 1900
MOST_OVER_TCP = 1500
MOST_OF_ONE_USER = 300
"""The daemon's own user and root may have all; for them some are kept free."""

HEAD_WITHIN_S = 10.0
"""How long the head of a request may take to arrive, from the connection or from its first byte (in seconds)."""

LONGEST_HEAD = 32 * 1024
"""A head that has not ended after so many bytes is not waited for; `auth` refuses shorter ones."""


class Doors:
    """How many connections are open, of whom. A user is an uid; None is everybody over TCP."""

    def __init__(self, uid: int) -> None:
        """:param uid: the daemon's own user"""
        self._trusted = (0, uid)
        self._open: Counter[int | None] = Counter()

    def refusal(self, user: int | None) -> Problem | None:
        """Return why one more connection of this user is too many, None if it is not."""
        total, own = self._open.total(), self._open[user]
        if user in self._trusted:
            full = total >= MOST_CONNECTIONS
        else:
            most = MOST_OVER_TCP if user is None else MOST_OF_ONE_USER
            full = own >= most or total >= MOST_OF_STRANGERS
        if not full:
            return None
        whose = "over TCP" if user is None else f"of uid {user}"
        hint = "close some of them; one connection serves many requests, one after the other"
        return problem(503, "too_many", f"{own} connections {whose} are open, {total} in all", hint)

    def enter(self, user: int | None) -> None:
        """One more connection of this user."""
        self._open[user] += 1

    def leave(self, user: int | None) -> None:
        """One connection less."""
        self._open[user] -= 1
        if not self._open[user]:
            del self._open[user]


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with the peer of a unix socket in each scope's state, limits and deadlines."""

    doors: Doors
    _user: int | None = None
    _counted = False
    _heading = False
    _streams = False
    _head = 0
    _deadline: asyncio.TimerHandle | None = None
    _cycles: tuple[RequestResponseCycle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn says so too
        """Note who it is; refuse who is too many."""
        peer = _peer_of(transport)
        self._user = peer.uid if peer is not None else None
        self.app_state = {**self.app_state, "peer": peer, "connection": self}
        super().connection_made(transport)
        refused = self.doors.refusal(self._user)
        if refused is not None:
            self._refuse(refused)
            return
        self.doors.enter(self._user)
        self._counted = True
        self._await_head()

    @property
    def is_gone(self) -> bool:
        """Whether nothing that is written now will arrive."""
        return self.transport.is_closing()

    def begin_stream(self) -> None:
        """An answer begins that may last for days: it is the last one here.

        A request that waited behind it would stop this connection from being read, and its end from being seen.

        :raises ProblemError: 400 if one waits already
        """
        if self.pipeline or self._heading:
            detail, hint = "another request came behind one whose answer goes on", "send it on a connection of its own"
            raise refusal(400, "pipelined", detail, hint, headers={"connection": "close"})
        self._streams = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone: whoever answers it must know, not only the newest request."""
        for cycle in self._cycles:
            cycle.disconnected = cycle.disconnected or not cycle.response_complete
            cycle.message_event.set()
        if self._counted:
            self.doors.leave(self._user)
            self._counted = False
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Let uvicorn read; a head that is not complete yet must not be long or late."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._heading:
            self._head += len(data)
            if self._head > LONGEST_HEAD:
                self._refuse(long_head())
                return
        if self._heading or self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._stop_waiting()

    def on_message_begin(self) -> None:
        """A head begins. Behind a stream nobody would ever answer it."""
        super().on_message_begin()
        self._heading, self._head = True, 0
        if self._streams and not self.cycle.response_complete:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._heading = self._streams = False
        super().on_headers_complete()
        self.cycle.transport = HeadWithBody(self.transport, self.loop)
        self._cycles = (*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(problem(400, "malformed", msg, "send HTTP/1.1, as curl and every HTTP library do"))

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_WITHIN_S, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._heading:
            self._refuse(problem(408, "slow", "the request's head did not arrive in time", "send it in one piece"))
        else:
            self.transport.close()

    def _refuse(self, found: Problem) -> None:
        self._stop_waiting()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # it would stand in the middle of another answer
            return
        self.transport.write(raw_answer(found))
        self.transport.close()


def long_head() -> Problem:
    """The refusal of a head that is too long."""
    detail = f"the request's head has more than {LONGEST_HEAD} bytes"
    return problem(431, "too_large", detail, "send fewer or shorter headers")


def protocol(doors: Doors) -> type[asyncio.Protocol]:
    """Return the class of connections that come through these doors."""
    return type("Connection", (Connection,), {"doors": doors})


def _peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    sock: Any = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    words = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid = (int.from_bytes(words[at : at + 4], "little") for at in (0, 4))
    return Peer(pid=pid, uid=uid)
