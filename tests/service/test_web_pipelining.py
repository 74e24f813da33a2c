"""One connection, one stream: a request behind a lease or an event stream must not keep it alive for ever."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.daemons import STEADY, Daemon, eventually
from tests.system.commands import one_daemon

NEXT = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all."""
    with one_daemon(config=STEADY | {"settle": {"policy": "never"}}) as made:
        yield made


def _door(daemon: Daemon, *, unix: bool) -> socket.socket:
    door = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    door.connect(daemon.socket if unix else ("127.0.0.1", daemon.port))
    return door


def _ask(daemon: Daemon, method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{daemon.port}\r\nauthorization: Bearer {daemon.token}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def _said(door: socket.socket, *, until: bytes) -> bytes:
    """All that comes until these bytes have, or the daemon hangs up."""
    door.setblocking(False)
    found = b""
    with anyio.fail_after(30):
        while until not in found:
            await anyio.wait_readable(door)
            try:
                part = door.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            found += part
    return found


async def _leases(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await daemon.get("/api/v1/leases")).json["leases"]
    return found


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("behind", [NEXT, NEXT[:12], b"\0" * 99_000, NEXT * 100])
async def test_a_request_behind_a_held_lease_cannot_keep_it(daemon: Daemon, unix: bool, behind: bytes) -> None:
    """The lease of a connection ends with it; who sends on it again has not understood what it is for."""
    with _door(daemon, unix=unix) as door:
        door.sendall(_ask(daemon, "POST", "/api/v1/leases", b'{"task": "held"}'))
        assert b'"granted"' in await _said(door, until=b'"granted"')
        assert await _leases(daemon)
        door.setblocking(True)
        door.sendall(behind)

    async def ended() -> bool:
        return not await _leases(daemon)

    await eventually(ended)


async def test_a_stream_with_a_request_behind_it_is_refused(daemon: Daemon) -> None:
    """Nobody would ever answer that request, and the daemon would not see its sender go."""
    with _door(daemon, unix=True) as door:
        door.sendall(_ask(daemon, "POST", "/api/v1/leases", b'{"task": "both"}') + NEXT)
        said = await _said(door, until=b'"hint"')
    assert said.startswith(b"HTTP/1.1 400")
    assert b'"pipelined"' in said
    assert await _leases(daemon) == []


async def test_requests_with_short_answers_may_be_pipelined(daemon: Daemon) -> None:
    """That is what HTTP/1.1 says; a stream that has ended is a short one too."""
    events = _ask(daemon, "GET", "/api/v1/events?follow=0")
    with _door(daemon, unix=True) as door:
        door.sendall(NEXT * 3)
        said = b""
        while said.count(b"HTTP/1.1 200") < 3:
            said += await _said(door, until=b"HTTP/1.1")
        door.setblocking(True)
        door.sendall(events)
        assert b"retry:" in await _said(door, until=b"0\r\n\r\n")
        door.setblocking(True)
        door.sendall(NEXT)
        assert b"200" in await _said(door, until=b"HTTP/1.1")


async def test_streams_that_were_cut_leave_nothing(daemon: Daemon) -> None:
    """A script that opens an event stream a minute, and sends on it, must not fill the daemon in a year."""
    folder = f"/proc/{daemon.process.pid}/fd"
    before = len(os.listdir(folder))
    stream = _ask(daemon, "GET", "/api/v1/events")
    for _ in range(10):
        doors = [_door(daemon, unix=False) for _ in range(100)]
        for door in doors:
            door.sendall(stream + NEXT)
        for door in doors:
            door.close()
        doors = [_door(daemon, unix=False) for _ in range(10)]
        for door in doors:
            door.sendall(stream)
            await _said(door, until=b"retry")
            door.setblocking(True)
            door.sendall(NEXT)
            door.close()

    async def nothing_left() -> bool:
        return len(os.listdir(folder)) <= before + 5

    await eventually(nothing_left)
    assert (await daemon.get("/livez")).status == 200
