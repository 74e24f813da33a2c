"""What keeps one client from being everybody's trouble: limits, deadlines, TLS, streams that lose nothing unsaid."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from gpulockd.errors import ConfigError
from gpulockd.settings import TlsBlock
from gpulockd.web.auth import token_of
from gpulockd.web.connection import MOST_CONNECTIONS, MOST_OF_ONE_USER, MOST_OF_STRANGERS, MOST_OVER_TCP, Doors
from gpulockd.web.encrypting import context_of
from tests.daemons import STEADY, Daemon, daemon_folder, eventually, running_daemon
from tests.system.commands import one_daemon

OPENSSL = Path("/usr/bin/openssl")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all."""
    with one_daemon(config=STEADY) as made:
        yield made


async def _said(daemon: Daemon, *parts: bytes, pause_s: float = 0.0, within_s: float = 60.0) -> bytes:
    """Send raw bytes and return all that is answered until the daemon hangs up."""
    async with await anyio.connect_tcp("127.0.0.1", daemon.port) as stream:
        for part in parts:
            await stream.send(part)
            await anyio.sleep(pause_s)
        found = b""
        with anyio.fail_after(within_s), contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                found += await stream.receive()
    return found


def _problem(said: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)


# Limits.


async def test_who_is_slow_is_cut_off(daemon: Daemon) -> None:
    """A thousand connections that send a byte now and then would else keep everybody out."""
    said: dict[str, bytes] = {}

    async def ask(name: str, *parts: bytes) -> None:
        said[name] = await _said(daemon, *parts)

    head = f"POST /api/v1/config HTTP/1.1\r\nhost: 127.0.0.1:{daemon.port}\r\nauthorization: Bearer {daemon.token}\r\n"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "silent")
        tasks.start_soon(ask, "head", b"GET /livez HTTP/1.1\r\nhost: ")
        tasks.start_soon(ask, "body", f"{head}content-length: 100\r\n\r\n{{".encode())
    assert said["silent"] == b""  # who says nothing is told nothing
    for name in ("head", "body"):
        status, problem = _problem(said[name])
        assert (status, problem["kind"]) == (408, "slow")


async def test_a_head_without_end_is_not_stored(daemon: Daemon) -> None:
    """Memory is for others too."""
    begun = b"GET /livez HTTP/1.1\r\nhost: x\r\na: "
    status, problem = _problem(await _said(daemon, begun + b"x" * 20_000, b"x" * 20_000))
    assert (status, problem["kind"]) == (431, "too_large")


async def test_what_is_no_http_is_a_problem_too(daemon: Daemon) -> None:
    """Who speaks TLS to a plain port wants to know."""
    status, problem = _problem(await _said(daemon, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"))
    assert (status, problem["kind"]) == (400, "malformed")
    both = b"POST /api/v1/leases HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n"
    assert _problem(await _said(daemon, both))[0] == 400


@pytest.mark.parametrize(
    ("path", "headers", "raw", "status"),
    [
        ("/livez?" + "x" * 9000, {}, b"", 414),
        ("/livez", {"cookie": "x" * 17_000}, b"", 431),
        ("/api/v1/config", {"content-encoding": "gzip"}, b"{}", 415),
        ("/api/v1/config", {}, b"[" * 70_000, 413),
        ("/api/v1/config", {}, b"[" * 60_000, 422),
        ("/api/v1/config", {}, b"\xff\xfe", 400),
        ("/api/v1/leases", {}, b'{"count": 1e400}', 422),
        ("/api/v1/leases", {}, b'{"max_wait_time": -1}', 422),
        ("/api/v1/leases", {}, b'{"priority": 1000}', 422),
        ("/api/v1/leases", {}, b'{"key": "a b\\r\\n"}', 422),
        ("/livez/", {}, b"", 404),
    ],
)
async def test_each_refusal_says_what_to_do(
    daemon: Daemon, path: str, headers: dict[str, str], raw: bytes, status: int
) -> None:
    """Whatever is wrong with a request."""
    answer = await daemon.ask("POST" if raw else "GET", path, headers=headers, raw=raw)
    assert answer.status in (status, 400) if status == 422 else answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["hint"]


async def test_options_and_head_are_what_http_says(daemon: Daemon) -> None:
    """Of a stream too, which would never end."""
    told = await daemon.ask("OPTIONS", "/api/v1/leases")
    assert (told.status, set(told.headers["allow"].split(", "))) == (204, {"GET", "HEAD", "POST"})
    for path, media in (("/api/v1/gpus", "application/json"), ("/api/v1/events", "text/event-stream")):
        head = await daemon.ask("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"].startswith(media)


def test_some_connections_are_kept_for_the_operator() -> None:
    """Who can still ask when a user or a script has opened all that he may?"""
    doors, uid = Doors(1000), 1234
    for user, most in ((uid, MOST_OF_ONE_USER), (None, MOST_OVER_TCP)):
        for _ in range(most):
            assert doors.refusal(user) is None
            doors.enter(user)
        refused = doors.refusal(user)
        assert refused is not None
        assert refused.hint
    for other in range(2000, 2000 + MOST_OF_STRANGERS - MOST_OVER_TCP - MOST_OF_ONE_USER):
        doors.enter(other)
    assert doors.refusal(7777) is not None
    for _ in range(MOST_CONNECTIONS - MOST_OF_STRANGERS):
        assert doors.refusal(0) is None
        assert doors.refusal(1000) is None
        doors.enter(1000)
    assert doors.refusal(0) is not None
    doors.leave(None)
    assert doors.refusal(0) is None


# The token and TLS.


@pytest.mark.parametrize(("mode", "text"), [(0o644, "x" * 43), (0o600, ""), (0o600, "short"), (0o000, "x" * 43)])
def test_a_token_that_others_know_is_refused(tmp_path: Path, mode: int, text: str) -> None:
    """The daemon says how to cure it instead of using it."""
    file = tmp_path / "api-token"
    file.write_text(text)
    file.chmod(mode)
    if mode == 0 and os.getuid() == 0:
        pytest.skip("root reads everything")
    with pytest.raises(ConfigError, match="api-token"):
        token_of(str(tmp_path))


def test_a_token_is_never_read_through_a_link(tmp_path: Path) -> None:
    """Else who may write to the folder chooses the token."""
    (tmp_path / "other").write_text("x" * 43)
    (tmp_path / "api-token").symlink_to(tmp_path / "other")
    with pytest.raises(ConfigError):
        token_of(str(tmp_path))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate of our own for 127.0.0.1, and its key."""
    if not OPENSSL.exists():
        pytest.skip("no openssl on this machine")
    folder = tmp_path_factory.mktemp("tls")
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    words += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([str(OPENSSL), *words], check=True, capture_output=True)
    (folder / "key.pem").chmod(0o600)
    return str(folder / "cert.pem"), str(folder / "key.pem")


async def test_the_port_speaks_https_and_the_unix_socket_does_not(pair: tuple[str, str]) -> None:
    """The command line goes on as before."""
    config = STEADY | {"web": {"tls": {"certificate": pair[0], "key": pair[1]}}}
    async with running_daemon(config=config) as daemon:
        assert daemon.url.startswith("https://")
        assert (await daemon.ask("GET", "/livez")).status == 200
        trusting = ssl.create_default_context(cafile=pair[0])
        head = f"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1:{daemon.port}\r\nconnection: close\r\n\r\n".encode()
        stream = await anyio.connect_tcp(
            "127.0.0.1",
            daemon.port,
            tls=True,
            ssl_context=trusting,
            tls_hostname="localhost",
            tls_standard_compatible=False,
        )
        async with stream:
            await stream.send(head)
            assert (await stream.receive()).startswith(b"HTTP/1.1 200")
        assert b"200" not in (await _said(daemon, head))[:20]


def test_tls_that_cannot_be_used_is_refused_clearly(pair: tuple[str, str], tmp_path: Path) -> None:
    """Before anything is started, with the file's name."""
    certificate, key = pair
    assert context_of(TlsBlock()) is None
    open_key = tmp_path / "open.pem"
    open_key.write_bytes(Path(key).read_bytes())
    open_key.chmod(0o644)
    empty = tmp_path / "empty.pem"
    empty.touch(mode=0o600)
    for tls, named in (
        (TlsBlock(certificate=certificate), "web.tls.key"),
        (TlsBlock(key=key), "web.tls.certificate"),
        (TlsBlock(certificate="/no/such.pem", key=key), "/no/such.pem"),
        (TlsBlock(certificate=certificate, key=str(open_key)), "chmod 600"),
        (TlsBlock(certificate=certificate, key=str(empty)), "empty.pem"),
        (TlsBlock(certificate=str(empty), key=key), "empty.pem"),
    ):
        with pytest.raises(ConfigError, match=re.escape(named)):
            context_of(tls)


async def test_a_daemon_with_a_wrong_certificate_does_not_start() -> None:
    """It must not go on in the clear."""
    async with daemon_folder() as base:
        (base / "config.yml").write_text('{"web": {"tls": {"certificate": "/no/such.pem", "key": "/no/such.key"}}}')
        command = [sys.executable, "-m", "gpulockd", "serve", "--config", str(base / "config.yml"), "--simulate", "1"]
        command += ["--socket", str(base / "run/api.sock"), "--state-dir", str(base / "state")]
        command += ["--listen", "127.0.0.1:0"]
        done = await anyio.run_process(command, check=False)
        assert done.returncode == 2
        assert b"web.tls.certificate" in done.stderr


# Streams.


async def _events(daemon: Daemon, last: int) -> list[dict[str, Any]]:
    """All that a reader gets who had `last`, and wants no more than there is."""
    answer = await daemon.ask("GET", "/api/v1/events?follow=0", headers={"last-event-id": str(last)})
    lines = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines]


async def _hold_once(daemon: Daemon) -> None:
    holding = await daemon.open("POST", "/api/v1/leases", {"task": "a"})
    await holding.until("granted")
    await holding.aclose()
    await eventually(lambda: _free(daemon))


async def _free(daemon: Daemon) -> bool:
    return not (await daemon.get("/api/v1/leases")).json["leases"]


async def test_a_reader_misses_nothing_over_a_daemon_restart() -> None:
    """It sends what it had last, to whichever daemon answers."""
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=STEADY) as first:
            await _hold_once(first)
            before = [event["seq"] for event in await _events(first, 0)]
        async with running_daemon(base=base, config=STEADY) as second:
            await _hold_once(second)
            after = [event["seq"] for event in await _events(second, before[2])]
            assert after[: len(before) - 3] == before[3:]
            assert after == list(range(before[3], after[-1] + 1))


async def test_what_the_store_has_no_more_is_told(daemon: Daemon) -> None:
    """A reader that was away too long must know that it has a hole."""
    for _ in range(3):
        await _hold_once(daemon)
    seqs = [event["seq"] for event in await _events(daemon, 0) if event["type"] != "dropped"]
    async with running_daemon(config=STEADY) as other:
        await _hold_once(other)
        had = (await _events(other, 0))[0]["seq"]
        with redis.Redis.from_url(other.store_url) as store:
            store.xtrim(f"gpulockd:{{{other.pool}}}:events", maxlen=2, approximate=False)
        await _hold_once(other)
        # Memory has them still; who reads through another daemon, or later, reads the store.
        assert (await _events(other, had))[0]["type"] != "dropped"
        told, *rest = await _events(other, had - 5)
        assert (told["type"], told["after"]) == ("dropped", had - 5)
        assert rest[0]["seq"] == told["through"] + 1
    told, *rest = await _events(daemon, seqs[-1] + 10**6)
    assert (told["type"], rest) == ("dropped", [])


def test_sockets_are_shut(daemon: Daemon) -> None:
    """A daemon that went through all this still answers."""
    with socket.create_connection(("127.0.0.1", daemon.port)) as door:
        door.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost:%d\r\nconnection: close\r\n\r\n" % daemon.port)
        assert door.recv(100).startswith(b"HTTP/1.1 200")
    assert '"web.failed"' not in daemon.log
