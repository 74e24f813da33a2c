"""One connection to Redis or Valkey: commands go out as they come, and replies come back in the same order.

Its law: a reply goes to its own command or to nobody. Who is cancelled leaves a place in the line whose reply is
dropped; a command that is late ends the connection, with all that waits on it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from gpulockd.ledger.wire.trouble import Broken, Late, Moved, Refused

BUFFER_BYTES = 16384
MESSAGES = (b"message", b"smessage")

Reply = Any
Heard = Callable[[bytes], None]


class Wire(asyncio.BufferedProtocol):
    """The loop's end of a connection. One timer watches all commands, for they end in the order in which they began."""

    def __init__(self, deadline_s: float, heard: Heard | None = None, ended: Callable[[], None] | None = None) -> None:
        """
        :param deadline_s: how long each command may take (in seconds)
        :param heard: what is called with each message of a subscription, at once when it is read
        :param ended: what is called once, when it can be used no more
        """
        self._loop = asyncio.get_running_loop()
        self._deadline_s = deadline_s
        self._heard = heard
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._reader: Any = hiredis.Reader(replyError=Refused)
        self._buffer = bytearray(BUFFER_BYTES)
        self._line: deque[tuple[asyncio.Future[Reply], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None
        self.why: Broken | None = None
        """Why it ended; None while it can be used."""

    def __repr__(self) -> str:
        return f"<Wire {len(self._line)} under way{', ended' if self.why else ''}>"

    def send(self, words: tuple[Any, ...]) -> asyncio.Future[Reply]:
        """Send a command at once. The reply comes as the result; cancelling it drops the reply.

        :raises Broken: if the connection has ended
        :raises UnicodeEncodeError: if a word is no text that can be sent; then nothing was
        """
        if self.why is not None or self._transport is None:
            raise self._copy()
        packed = hiredis.pack_command(words)  # before it stands in the line: it may be refused
        slot: asyncio.Future[Reply] = self._loop.create_future()
        due = self._loop.time() + self._deadline_s
        try:
            self._line.append((slot, due))
            if self._timer is None:
                self._timer = self._loop.call_at(due, self._look)
            self._transport.write(packed)
        except BaseException:
            # A signal handler raised here, so nobody knows whether it was sent: every later reply could be another's.
            self.abort(Broken("sending a command was interrupted"))
            raise
        return slot

    def descriptors(self) -> list[int]:
        """The descriptor of its socket, if it is open."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return [sock.fileno()] if sock is not None and sock.fileno() >= 0 else []

    def set_option(self, level: int, option: int, value: int) -> None:
        """Set an option of the socket."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(level, option, value)

    def rest(self, seconds: float) -> None:
        """Read nothing for so long (in seconds): what comes waits in the socket, and is read in one go."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()
            self._loop.call_later(seconds, self._transport.resume_reading)

    def abort(self, why: Broken | None = None) -> None:
        """End the connection now; nothing that was not sent is sent any more."""
        self._end(why or Broken("the connection was closed"))
        if self._transport is not None:
            self._transport.abort()

    async def aclose(self) -> None:
        """End the connection and wait until its socket is closed."""
        self.abort()
        if self._closed is not None:
            await asyncio.wait((self._closed,))

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        # uvloop's transports are no asyncio.Transport by inheritance.
        self._transport = cast("asyncio.Transport", transport)
        self._closed = self._loop.create_future()
        if self.why is not None:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where the loop puts what it reads."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Some bytes have come: give each whole reply to whom it belongs."""
        reader = self._reader
        try:
            reader.feed(self._buffer, 0, nbytes)
            while (reply := reader.gets()) is not False and self.why is None:
                self._take(reply)
        except hiredis.ProtocolError as garbled:
            self.abort(Broken(f"what it answers cannot be read: {garbled}"))
        except BaseException:
            self.abort(Broken("reading an answer was interrupted"))
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._end(Broken(str(exc) if exc else "the server closed the connection"))
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)

    def _take(self, reply: Reply) -> None:
        if self._heard is not None and isinstance(reply, list) and reply[0] in MESSAGES:
            self._heard(reply[2])
            return
        if isinstance(reply, list) and reply[:1] == [b"sunsubscribe"]:  # many answers are empty
            self.abort(Moved("another server of the cluster has its keys now"))
            return
        if not self._line:
            self.abort(Broken(f"it said what nobody had asked for: {str(reply)[:100]}"))
            return
        slot, _ = self._line[0]
        if slot.done():
            pass  # who asked was cancelled
        elif isinstance(reply, Refused):
            _fail(slot, reply)
        else:
            slot.set_result(reply)
        self._line.popleft()

    def _look(self) -> None:
        """Whether the oldest command is late."""
        self._timer = None
        if not self._line:
            return
        due = self._line[0][1]
        if self._loop.time() < due:
            self._timer = self._loop.call_at(due, self._look)
        else:
            self.abort(Late(f"gave no answer within {self._deadline_s:g} s"))

    def _end(self, why: Broken) -> None:
        if self.why is not None:
            return
        self.why = why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            slot, _ = self._line.popleft()
            if not slot.done():
                _fail(slot, self._copy())
        if self._ended is not None:
            self._ended()

    def _copy(self) -> Broken:
        """The reason for one of those who wait: an exception belongs to one traceback."""
        why = self.why or Broken("the connection is not open")
        return type(why)(*why.args)


def _fail(slot: asyncio.Future[Reply], error: Exception) -> None:
    """Tell who waits. Nobody may wait any more: then it is no error that anybody must see."""
    slot.set_exception(error)
    slot.exception()
