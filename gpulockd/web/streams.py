"""Answers that go on: the events of the pool (SSE), and the response that a handler writes line by line.

Its law: a stream ends with its peer, its work or the daemon, whichever comes first, and its work is then over.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable

import anyio
import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.web.backend import Backend
from gpulockd.web.feed import PAGE
from gpulockd.web.problems import of_error, refusal
from gpulockd.web.problems import response as problem_response
from gpulockd.web.table import Visit

PING_S = 15.0
RETRY_S = 1.0
GATHER_S = 0.25
"""How long news gathers after some were written (in seconds), more or less: a busy pool wakes no reader for each of
its events, and not all readers at once."""

SPREAD_S = 0.001
"""Readers are written at moments of their own, so far apart on average (in seconds): what happened to all of them at
once must not keep the daemon from everything else until the last one has it."""

MOST_SPREAD_S = 0.1

MOST_READERS_OVER_TCP = 1000
MOST_READERS_OF_ONE_USER = 200
"""How many may follow the events who are nobody the daemon knows: some connections stay free for short requests. The
daemon's own user, root and who has the token may all."""

Write = Callable[[bytes], Awaitable[None]]


class Stream(Response):
    """Runs `work(write)` as long as the peer listens. What it raises before its first write is a problem of its own.

    :param work: writes the body; it is cancelled when the peer goes
    :param on_error: turns an error after the first write into the last bytes
    """

    def __init__(
        self,
        work: Callable[[Write], Awaitable[None]],
        *,
        media_type: str,
        on_error: Callable[[GpuLockError], bytes] | None = None,
    ) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._work = work
        self._on_error = on_error
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the work is done or the peer is gone."""

        connection = scope.get("state", {}).get("connection")

        async def write(body: bytes) -> None:
            if connection is not None and connection.is_gone:
                # Whatever else has missed that the peer is gone: it is over here.
                tasks.cancel_scope.cancel()
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async def leave_with_peer() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue
            tasks.cancel_scope.cancel()

        if connection is not None:
            connection.begin_stream()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave_with_peer)
            try:
                await self._work(write)
            except GpuLockError as error:
                if not self._started:
                    await problem_response(of_error(error))(scope, receive, send)
                    tasks.cancel_scope.cancel()
                    return
                if self._on_error is not None:
                    await write(self._on_error(error))
            if self._started:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            tasks.cancel_scope.cancel()


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event: `id` is the seq of what happened, `event` its tag, `data` its JSON."""

    id: str
    event: str
    data: str


async def events(visit: Visit) -> Stream:
    """The pool's events as they happen, after `Last-Event-ID` (a seq) or of the last `since`.

    With `follow=0` only those that there are. What the store has no more is told as an event `dropped`.

    :raises ProblemError: 422 if neither can be read, 503 if too many follow them
    """
    backend = visit.backend
    who = visit.caller.peer.uid if visit.caller.peer is not None else None
    last = visit.request.headers.get("last-event-id")
    since = visit.request.query_params.get("since")
    if last is not None:
        seen = _seq(last)
    elif since is not None:
        seen = await backend.feed.seq_before(since)
    else:
        seen = backend.feed.last
    until = backend.feed.last if visit.number("follow", 1, 1) == 0 else None

    most = MOST_READERS_OVER_TCP if who is None else MOST_READERS_OF_ONE_USER
    if not visit.caller.trusted and backend.readers[who] >= most:
        whose = "over TCP" if who is None else f"of uid {who}"
        hint = "read them with ?since=…&follow=0 now and then, or let one reader tell the others"
        detail = f"{backend.readers[who]} streams of events {whose} are open"
        raise refusal(503, "too_many", detail, hint, headers={"retry-after": "30"})

    async def work(write: Write) -> None:
        if visit.caller.trusted:
            return await tell(write)
        backend.readers[who] += 1
        try:
            await tell(write)
        finally:
            backend.readers[who] -= 1

    async def tell(write: Write) -> None:
        await write(f"retry: {round(RETRY_S * 1000)}\n\n".encode())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_set, backend.stopping, tasks.cancel_scope)
            begin = seen if last is None else await _known(backend, seen, write)
            with backend.feed.reader():
                await _follow(backend, begin, until, write)
            tasks.cancel_scope.cancel()

    return Stream(work, media_type="text/event-stream")


async def _follow(backend: Backend, seen: int, until: int | None, write: Write) -> None:
    """Write what happens after `seen`; up to `until`, or for ever."""
    next_at = float("-inf")
    while until is None or seen < until:
        await anyio.sleep(max(0.0, next_at - anyio.current_time()))
        if backend.feed.last <= seen:
            with anyio.move_on_after(PING_S) as quiet:
                await backend.feed.changed(seen)
            if quiet.cancelled_caught:
                await write(b": ping\n\n")
                continue
            await anyio.sleep(random.random() * min(MOST_SPREAD_S, SPREAD_S * backend.feed.readers))
        try:
            happened = await backend.feed.after(seen)
        except StoreUnavailable:
            happened = ()
        if happened:
            if seen and happened[0].seq > seen + 1:
                await _tell_dropped(backend, seen, happened[0].seq, write)
            seen = happened[-1].seq
            await write(b"".join([event.sse for event in happened]))
            if len(happened) < PAGE:
                next_at = anyio.current_time() + GATHER_S * random.uniform(0.8, 1.2)
        elif until is not None:
            return
        else:  # the store is away, or has lost what it had
            await anyio.sleep(RETRY_S)


async def _known(backend: Backend, seen: int, write: Write) -> int:
    """Return from where to go on; a number that no event has yet is another store's, and the reader is told."""
    try:
        newest = await backend.feed.newest()
    except StoreUnavailable:
        return seen
    if seen <= newest:
        return seen
    await write(_dropped(seen, newest, "no event of this store has this number yet"))
    return newest


async def _tell_dropped(backend: Backend, seen: int, first: int, write: Write) -> None:
    """Say what the reader cannot have any more. Numbers have holes of their own, which are none of what was there."""
    with contextlib.suppress(StoreUnavailable):
        oldest = await backend.feed.oldest()
        if seen + 1 < oldest <= first:
            await write(_dropped(seen, oldest - 1, "the store has them no more"))


def _dropped(after: int, through: int, reason: str) -> bytes:
    told = {"type": "dropped", "after": after, "through": through, "reason": reason}
    return b"id: %d\nevent: dropped\ndata: %s\n\n" % (through, msgspec.json.encode(told))


async def _cancel_when_set(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _seq(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise refusal(422, "invalid", f"Last-Event-ID {text[:40]!r}", "say the id of the last event that you have")
    return int(text)


def as_line(value: msgspec.Struct) -> bytes:
    """Return one line of an application/x-ndjson body."""
    return msgspec.json.encode(value) + b"\n"
