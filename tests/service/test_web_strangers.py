"""What others say, open and try must not reach a terminal, another user's lease, or everybody's connections."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from gpulockd.errors import ConfigError
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from gpulockd.units import check_plain, clean
from gpulockd.web.auth import LONGEST_DELAY_S, Guesses
from gpulockd.web.connection import HEAD_WITHIN_S
from gpulockd.web.streams import MOST_READERS_OF_ONE_USER, MOST_READERS_OVER_TCP
from tests.daemons import STEADY, Daemon, running_daemon
from tests.receivers import certificate
from tests.system.commands import call, one_daemon

NASTY = "a\x1b[31mRED\x1b]0;pwn\x07\nline2\u202e\x9b2J"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon for all."""
    with one_daemon(config=STEADY | {"settle": {"policy": "never"}}) as made:
        yield made


async def _nobody(daemon: Daemon, script: str, *words: str) -> list[Any]:
    """Run a script as another user; what it prints, line by line, as JSON."""
    for folder in (daemon.runtime.parent, daemon.runtime):
        folder.chmod(0o755)
    script = (
        "import http.client, json, os, socket, sys, time\nos.setgroups([]); os.setgid(65533); os.setuid(65533)\n"
        + script
    )
    done = await anyio.run_process(
        [sys.executable, "-I", "-c", script, daemon.socket, *words], stderr=subprocess.STDOUT
    )
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def test_a_text_for_a_screen_moves_no_cursor() -> None:
    """Else one user's task name writes on another's terminal."""
    assert clean(NASTY).isprintable()
    assert clean("Müller 3\u00a0GiB 日本") == "Müller 3\u00a0GiB 日本"
    assert clean("x" * 30, 10) == "x" * 9 + "…"
    with pytest.raises(ConfigError, match="task_id"):
        check_plain("a\nb", "task_id")


async def test_names_that_control_a_terminal_are_refused(daemon: Daemon) -> None:
    """Whoever asks is told which field it is."""
    for wish in ({"task": NASTY}, {"task_id": "t\x1b[2J"}):
        answer = await daemon.ask("POST", "/api/v1/leases", wish)
        assert answer.status == 422
        assert next(iter(wish)) in answer.json["detail"]
        assert "\x1b" not in answer.json["detail"]


@pytest.mark.parametrize(
    "process", [{"pid": -1}, {"pid": 2**40}, {"host": "a b"}, {"host": "x" * 300}, {"user": "r\n"}]
)
async def test_a_process_is_named_as_processes_are(daemon: Daemon, process: dict[str, Any]) -> None:
    """Where the kernel says nothing, what is said must at least be possible."""
    said = {"pid": 1, "host": "h", "boot_id": "b"} | process
    headers = {"authorization": f"Bearer {daemon.token}"}
    answer = await daemon.ask("POST", "/api/v1/leases", {"process": said}, tcp=True, headers=headers)
    assert (answer.status, next(iter(process)) in answer.json["detail"]) == (422, True)


async def test_commands_print_nothing_that_others_control(daemon: Daemon) -> None:
    """Programs with Redis of their own write names that no daemon has seen."""
    held = await daemon.open("POST", "/api/v1/leases", {"task": "plain"})
    lease = await held.until("granted")
    store = BlockingStore(daemon.store_url, deadline_s=5.0)
    keys = PoolKeys(daemon.pool)
    store.ask(verbs.progress(keys, session="", id=lease["lease"], token=lease["token"], percent=5.0, note=NASTY))
    store.ask(verbs.report(keys, session="", gpu="gpu_lock:1", state="drained", reason=NASTY))
    store.close()
    for words in (["status"], ["queue"], ["events", "--since", "5m"], ["history"], ["top", "--once"]):
        done = await anyio.to_thread.run_sync(partial(call, daemon, *words, NO_COLOR="1"))
        assert done.returncode in (0, 1), done.stderr
        assert all(line.isprintable() for line in done.stdout.splitlines()), (words, done.stdout)
    await held.aclose()


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
async def test_another_users_session_and_ticket_are_refused(daemon: Daemon) -> None:
    """Who knows an id has no right by it; and nothing of that is the daemon's own failure."""
    mine = {"session": "s" * 32, "ticket": "t" * 32, "task": "mine", "key": "mine"}
    held = await daemon.open("POST", "/api/v1/leases", mine)
    await held.until("granted")
    script = """
for wish in ({"session": "s" * 32, "ticket": "u" * 32}, {"session": "v" * 32, "ticket": "t" * 32}):
    asked = http.client.HTTPConnection("localhost")
    asked.sock = socket.socket(socket.AF_UNIX)
    asked.sock.connect(sys.argv[1])
    asked.request("POST", "/api/v1/leases", json.dumps(wish | {"key": "other"}))
    answer = asked.getresponse()
    print(json.dumps([answer.status, json.loads(answer.readline())["kind"]]))
"""
    assert await _nobody(daemon, script) == [[403, "forbidden"], [409, "ended"]]
    leases = (await daemon.get("/api/v1/leases")).json["leases"]
    assert "t" * 32 in {lease["id"] for lease in leases}


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
async def test_event_streams_leave_connections_for_others(daemon: Daemon) -> None:
    """Streams last for ever; whoever opens all he can must not keep others from asking."""
    assert MOST_READERS_OVER_TCP <= 1000
    script = """
doors = []
for _ in range(int(sys.argv[2])):
    door = http.client.HTTPConnection("localhost")
    door.sock = socket.socket(socket.AF_UNIX)
    door.sock.connect(sys.argv[1])
    door.request("GET", "/api/v1/events")
    doors.append((door, door.getresponse()))
answer = doors[-1][1]
print(json.dumps([[one.status for _, one in doors[:-1]].count(200), answer.status, json.loads(answer.read())["kind"]]))
"""
    most = MOST_READERS_OF_ONE_USER
    assert await _nobody(daemon, script, str(most + 1)) == [[most, 503, "too_many"]]


def test_wrong_tokens_are_answered_later_and_later() -> None:
    """Each guess costs time; a right token is never asked to wait."""
    guesses = Guesses()
    delays = [guesses.delay_s(10.0 + n) for n in range(10)]
    assert delays == sorted(delays) and delays[-1] == LONGEST_DELAY_S and 0 < delays[0] < delays[1]
    assert guesses.delay_s(1000.0) == delays[0]


async def test_who_never_shakes_hands_is_let_go(tmp_path: Path) -> None:
    """Connections to a TLS port that say nothing must not gather."""
    certificate(tmp_path)
    (tmp_path / "key.pem").chmod(0o600)
    tls = {"certificate": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    async with running_daemon(config=STEADY | {"web": {"tls": tls}}, simulate=1) as daemon:
        context = ssl.create_default_context(cafile=tls["certificate"])
        context.check_hostname = False
        with contextlib.ExitStack() as stack, anyio.fail_after(HEAD_WITHIN_S + 60):
            silent = [stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port))) for _ in range(400)]
            for one in silent:
                one.setblocking(False)
                await anyio.wait_readable(one)
                with contextlib.suppress(ConnectionResetError):
                    assert one.recv(100) == b""
        stream = await anyio.connect_tcp(
            "127.0.0.1", daemon.port, tls=True, ssl_context=context, tls_standard_compatible=False
        )
        async with stream:
            await stream.send(f"GET /livez HTTP/1.1\r\nhost: 127.0.0.1:{daemon.port}\r\n\r\n".encode())
            assert (await stream.receive()).startswith(b"HTTP/1.1 200")
