"""`guard.sock`: who the daemon is, one JSON line each way. Programs ask it which pool and which store are this host's.

Its law: no peer can end it or make it grow: lines and connections are bounded, and a wrong line is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.abc
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

LONGEST_LINE = 64 * 1024
MOST_CONNECTIONS = 1024
IDLE_S = 60.0

_OPEN_MODE, _GROUP_MODE = 0o666, 0o660


Hello = Callable[[], Mapping[str, Any]]


async def run(
    path: str,
    hello: Hello,
    *,
    secret: bool,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled.

    :param hello: what to say of the daemon: pool, store, guarded, version
    :param secret: the store's URL holds a password, so only the user and the group may ask
    """
    listener = await anyio.create_unix_listener(path, mode=_GROUP_MODE if secret else _OPEN_MODE)
    room = anyio.Semaphore(MOST_CONNECTIONS)

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                room.acquire_nowait()
            except anyio.WouldBlock:
                return
            try:
                await _converse(stream, hello)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                return  # the peer has gone
            finally:
                room.release()

    async with listener:
        task_status.started()
        await listener.serve(serve)


async def _converse(stream: anyio.abc.SocketStream, hello: Hello) -> None:
    lines = BufferedByteReceiveStream(stream)
    while True:
        with anyio.move_on_after(IDLE_S) as idle:
            try:
                line = await lines.receive_until(b"\n", LONGEST_LINE)
            except anyio.DelimiterNotFound:
                await _say(stream, _error(f"a line of more than {LONGEST_LINE} bytes", "send one JSON object a line"))
                return
            except (anyio.IncompleteRead, anyio.EndOfStream):
                return
        if idle.cancelled_caught:
            return
        await _say(stream, answer(line, hello))


async def _say(stream: anyio.abc.SocketStream, words: Mapping[str, Any]) -> None:
    with anyio.move_on_after(IDLE_S):
        await stream.send(msgspec.json.encode(words) + b"\n")


def answer(line: bytes, hello: Hello) -> Mapping[str, Any]:
    """Return the answer to one line."""
    try:
        said = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        return _error(f"not JSON: {wrong}", 'send one line such as {"verb": "hello"}')
    verb = said.get("verb") if isinstance(said, dict) else None
    if verb == "hello":
        return hello()
    return _error(f"unknown verb {verb!r}"[:200], 'this version knows {"verb": "hello"}')


def _error(what: str, hint: str) -> dict[str, str]:
    return {"error": what, "hint": hint}
