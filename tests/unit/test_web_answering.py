"""How answers leave, and how a path finds its route."""

from __future__ import annotations

import asyncio
import gc

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gpulockd.daemon.process import keep_what_the_start_made
from gpulockd.web.answering import HeadWithBody
from gpulockd.web.routing import Paths


class Wire(asyncio.Transport):
    """Keeps what is written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        assert not self.closed
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closed

    def close(self) -> None:
        """Close it."""
        self.closed = True


async def test_the_head_of_an_answer_goes_out_with_the_first_part_of_its_body() -> None:
    """Two small packets instead of one wake the reader twice, and cost the daemon twice."""
    wire = Wire()
    answer = HeadWithBody(wire, asyncio.get_running_loop())
    for part in (b"head ", b"body", b" more", b" yet"):
        answer.write(part)
    await asyncio.sleep(0)
    assert wire.pieces == [b"head body", b" more", b" yet"]


async def test_a_head_that_nothing_follows_does_not_wait() -> None:
    """HEAD, 204 and 100 Continue have no body that could take them along."""
    wire = Wire()
    HeadWithBody(wire, asyncio.get_running_loop()).write(b"head")
    await asyncio.sleep(0)
    assert wire.pieces == [b"head"]


async def test_an_answer_that_closes_its_connection_is_sent_before() -> None:
    """`connection: close` and an answer that breaks off must not lose what was written."""
    wire = Wire()
    answer = HeadWithBody(wire, asyncio.get_running_loop())
    answer.write(b"head")
    answer.close()
    await asyncio.sleep(0)
    assert wire.pieces == [b"head"]
    assert answer.is_closing()


class Says:
    """A route's application that answers with one word."""

    def __init__(self, word: str) -> None:
        self._word = word

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await Response(self._word + repr(scope["path_params"]))(scope, receive, send)


async def _asked(paths: Paths, path: str, method: str = "GET") -> tuple[int, bytes]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    await paths(scope, receive, send)
    return sent[0]["status"], sent[1]["body"]


async def test_a_path_that_is_written_out_goes_before_one_with_a_parameter() -> None:
    """A name that somebody chose can then never hide a route, and known paths are found without a search."""
    some, one = Route("/a/{id:path}", Says("some"), methods=["GET"]), Route("/a/b", Says("one"), methods=["GET"])
    paths = Paths([some, one])
    assert await _asked(paths, "/a/b") == (200, b"one{}")
    assert await _asked(paths, "/a/c") == (200, b"some{'id': 'c'}")
    assert (await _asked(paths, "/a/b", "PUT"))[0] == 405
    assert (await _asked(paths, "/a/b/"))[1] == b"some{'id': 'b/'}"
    assert (await _asked(paths, "/b"))[0] == 404


def test_what_the_start_made_is_not_looked_through_again() -> None:
    """A collection over all modules stops the event loop for 50 ms and more."""
    try:
        keep_what_the_start_made()
        assert gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
