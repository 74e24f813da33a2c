"""The client's end of the guard's socket: asks to be let in, says when it leaves, and knows whether the guard stands.

A link belongs to one loop. While it is open and its lease was admitted, that lease is vouched for: Redis may be away
for any length of time. When it breaks it is opened again by itself, and says anew what this process holds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, cast

import msgspec

from gpulockd.client.guarded import (
    GuardAway,
    LastWord,
    NotAdmitted,
    away_text,
    fail,
    hello_of,
    sockets_of,
    unread_in,
    words_of,
)
from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError

log = logging.getLogger("gpulockd")

CONNECT_S = 1.0
RETRY_S = 0.05
MOST_RETRY_S = 1.0


class GuardLink(asyncio.Protocol):
    """One loop's connection to the guard of this host."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.loop = asyncio.get_running_loop()
        self.hint = ""
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._unheard = b""
        self._word = LastWord()
        self._greeted: asyncio.Future[None] | None = None
        self._asked: dict[str, tuple[int, asyncio.Future[None]]] = {}
        self._admitted: dict[str, int] = {}
        self._named: dict[str, int] = {}  # a guard that came meanwhile may have taken a lease from the ledger's word
        self._said = self._told = list[str]()  # ended sessions that a guard has heard of: it may keep a gpu for them
        self._connecting: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._absent_until_s, self._closed = 0.0, False

    def __repr__(self) -> str:
        return f"<GuardLink {'open' if self._socket is not None else 'closed'}, {len(self._admitted)} admitted>"

    def vouches(self, entry: Entry) -> bool:
        """Whether the guard has let this lease in and stands; from any thread."""
        return self._admitted.get(entry.id) == entry.token and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether the guard stands and has spoken lately; from any thread, also while the loop is blocked."""
        opened = self._socket
        unread = unread_in(opened) if opened is not None else None
        if unread is None:
            return False
        self._word.waits_unread(unread)
        return boottime_s() - self._word.at_s <= self.session.guard_silence_s

    async def stands(self) -> bool:
        """Whether the last guard answers, though the ledger has given it up: it may be cut off from the store."""
        if self._transport is None and self.loop.time() >= self._absent_until_s:
            await asyncio.wait([self._connect()], timeout=CONNECT_S)
            self._absent_until_s = self.loop.time() + MOST_RETRY_S
        return self.is_alive

    # What is said.

    def admit(self, entry: Entry, token: int, gpus: tuple[str, ...]) -> asyncio.Future[None]:
        """Ask to be let in. The future fails with `GuardAway` or `NotAdmitted`."""
        self.session.highest_token = max(self.session.highest_token, token)
        self._named[entry.id], asked = token, self._asked.get(entry.id)
        if asked is not None and asked[0] == token and not asked[1].done():
            return asked[1]
        future: asyncio.Future[None] = self.loop.create_future()
        if self._admitted.get(entry.id) == token:
            future.set_result(None)
            return future
        self._asked[entry.id] = token, future
        if self._transport is not None and self._greeted is not None and self._greeted.done():
            self._say_admit(entry, token, gpus)
        else:
            self._connect().add_done_callback(lambda _: self._admit_late(entry, token, gpus, future))
        return future

    def _admit_late(self, entry: Entry, token: int, gpus: tuple[str, ...], future: asyncio.Future[None]) -> None:
        if future.done():
            return
        if self._transport is None:
            fail(future, GuardAway(away_text(self.session, self.hint)))
        else:
            self._say_admit(entry, token, gpus)

    def _say_admit(self, entry: Entry, token: int, gpus: tuple[str, ...]) -> None:
        self._say({"verb": "admit", "session": entry.session, "lease": words_of(entry, token, gpus)})

    def is_asked(self, entry: Entry) -> bool:
        """Whether it owes an answer for this ticket."""
        return entry.id in self._asked

    def has_let_in(self, entry: Entry, token: int) -> bool:
        """Whether a yes to this grant still stands: "lost" may have come in the same breath."""
        return self._admitted.get(entry.id) == token

    def leave(self, entry: Entry) -> None:
        """Say that the body is over, or will not begin. One write that does not wait."""
        admitted, token = self._admitted.pop(entry.id, 0), self._named.pop(entry.id, 0)
        token, asked = token or admitted, self._asked.pop(entry.id, None)
        if asked is not None:
            asked[1].cancel()
        if token and self._transport is not None:
            self._say({"verb": "leave", "lease": entry.id, "token": token, "lost": entry.lost.is_set()})

    def _say(self, words: dict[str, Any]) -> None:
        assert self._transport is not None
        self._transport.write(msgspec.json.encode(words) + b"\n")

    # The connection.

    def look(self) -> None:
        """Connect if the pool is guarded and something is held here; call it in the loop."""
        trying = self._retry is not None or (self._connecting is not None and not self._connecting.done())
        if self.session.guarded and self._transport is None and not trying and not self._closed:
            self._open_again(RETRY_S)

    def _has_something(self) -> bool:
        untold = self.session.guarded and self.session.before != self._told
        return untold or any(entry.loop is self.loop for entry in self.session.table.all())

    def _connect(self) -> asyncio.Task[None]:
        if self._connecting is None or self._connecting.done():
            self._connecting = self.loop.create_task(self._open())
        return self._connecting

    async def _open(self) -> None:
        """Connect to the first socket that answers for this pool, and greet it. Never raises."""
        for path in sockets_of(self.session):
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._open_at(path)
                return
            except (OSError, TimeoutError) as away:
                self.hint = f"{path}: {str(away) or 'no answer'}"
                self._drop()

    async def _open_at(self, path: str) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.setblocking(False)
        try:
            await self.loop.sock_connect(connection, path)
        except BaseException:
            connection.close()
            raise
        self._greeted = self.loop.create_future()
        self._unheard = b""
        await self.loop.create_connection(lambda: self, sock=connection)
        self._socket = connection
        self._word.asked()
        self._said = self.session.before
        self._say(hello_of(self.session))
        await self._greeted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        # uvloop's transports are no asyncio.Transport by inheritance.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The guard has spoken."""
        *lines, self._unheard = (self._unheard + data).split(b"\n")
        for line in lines:
            try:
                said = msgspec.json.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if isinstance(said, dict):
                self._word.heard(said)
                self._hear(said)

    def connection_lost(self, exc: Exception | None) -> None:
        """The guard has gone: what it vouched for is believed by Redis alone, until it is back."""
        self._drop()
        if not self._closed and self._has_something():
            log.info("gpulockd: the guard's socket has closed; trying again")
            self._try_later(RETRY_S)

    def _open_again(self, pause_s: float) -> None:
        self._retry = None
        if self._transport is not None or self._closed or not self._has_something():
            return
        self._connect().add_done_callback(lambda _: self._try_later(min(2 * pause_s, MOST_RETRY_S)))

    def _try_later(self, pause_s: float) -> None:
        if self._transport is None and self._retry is None and not self._closed:
            self._retry = self.loop.call_later(pause_s, self._open_again, pause_s)

    def _drop(self) -> None:
        transport, self._transport, self._socket = self._transport, None, None
        self._admitted.clear()
        if transport is not None:
            transport.abort()
        fail(self._greeted, ConnectionResetError("the guard has hung up"))
        asked, self._asked = self._asked, {}
        for _, future in asked.values():
            fail(future, GuardAway(away_text(self.session, self.hint)))

    def close(self) -> None:
        """The loop closes."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._drop()

    def descriptors(self) -> list[int]:
        """Open sockets, for a forked child to close."""
        return [self._socket.fileno()] if self._socket is not None and self._socket.fileno() >= 0 else []

    # What is heard.

    def _hear(self, said: dict[str, Any]) -> None:
        if "pool" in said and self._greeted is not None and not self._greeted.done():
            self._take_hello(said)
        elif "admitted" in said:
            self._settle(said, None)
        elif "refused" in said:
            self._settle(said, NotAdmitted(f"the guard does not let this lease in: {said.get('why')}"))
        elif "lost" in said:
            self._lose(str(said["lost"]), said.get("token"), str(said.get("reason", "ended")))
        elif "error" in said:
            fail(self._greeted, ConnectionRefusedError(str(said["error"])))
            asked, self._asked = self._asked, {}
            for _, future in asked.values():
                fail(future, GuardAway(f"the guard does not take this: {said['error']}"))

    def _lose(self, id: str, token: object, reason: str) -> None:
        """The guard says that a lease is over. Who is not in its body says so: nobody else is waited for then."""
        entry = self.session.table.get(id)
        named = self._named.get(id)
        if entry is not None and entry.state in ("held", "member") and token in (None, entry.token):
            entry.lose(reason)
        elif entry is not None and entry.loop is not self.loop:
            return  # its own link hears it too, and knows whether its body has begun
        elif entry is not None and entry.state == "asking" and token in (None, named):
            asked = self._asked.get(id)
            if asked is not None and not asked[1].done():  # who waits for it is not cancelled, but looks again
                fail(asked[1], GuardAway("the guard says that this grant is over"))
            self.leave(entry)  # let in for a claim that has lapsed: no body has begun
            entry.kick()
        elif isinstance(token, int) and self._transport is not None:
            self._say({"verb": "leave", "lease": id, "token": token, "lost": True})
            if entry is not None:
                entry.kick()

    def _take_hello(self, said: dict[str, Any]) -> None:
        assert self._greeted is not None
        if said.get("pool") != self.session.pool or "error" in said:
            self.hint = str(said.get("error") or f"it guards pool {said.get('pool')}")
            return fail(self._greeted, ConnectionRefusedError(self.hint))
        for id in said.get("admitted") or ():
            entry = self.session.table.get(str(id))
            if entry is not None:
                self._admitted[entry.id] = entry.token
                entry.guard = self
        self._told = self._said
        self._greeted.set_result(None)
        return None

    def _settle(self, said: dict[str, Any], error: GpuLockError | None) -> None:
        id, token = str(said.get("admitted") or said.get("refused")), said.get("token")
        asked = self._asked.get(id)
        if not isinstance(token, int) or not isinstance(said.get("admitted", ""), str):
            return
        if asked is None or asked[0] != token or asked[1].done():
            if error is None:  # nobody waits for it any more
                self._say({"verb": "leave", "lease": id, "token": token})
            return
        del self._asked[id]
        if error is not None:
            return fail(asked[1], error)
        self._admitted[id] = token
        asked[1].set_result(None)
