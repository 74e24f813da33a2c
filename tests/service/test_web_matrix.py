"""Who may call which route, and which names and pages are refused: over every row of the route table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from gpulockd.web.routes import ROWS
from gpulockd.web.table import Row
from tests.daemons import STEADY, Daemon, eventually
from tests.system.commands import one_daemon

OTHER = 65533
NOBODY_ELSE = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")

WRITES = [row for row in ROWS if row.access != "free"]
OWNERS = {"POST /api/v1/leases", "PATCH /api/v1/leases/{id:path}", "DELETE /api/v1/leases/{id:path}"}
OWNERS |= {"POST /api/v1/monitoring/release-lock", "POST /api/v1/monitoring/lock/release"}
"""Routes on which it counts whose lease it is; each is tried below with a lease of another's."""

PROGRAM = """
import http.client, json, os, socket, subprocess, sys
uid, path = int(sys.argv[1]), sys.argv[2]
os.setgroups([]); os.setgid(uid); os.setuid(uid)
children = []
try:
    for line in sys.stdin:
        method, target, body = json.loads(line)
        c = http.client.HTTPConnection("localhost", timeout=60)
        c.sock = socket.socket(socket.AF_UNIX); c.sock.connect(path)
        if isinstance(body, dict) and body.get("pid") == "child":
            children.append(subprocess.Popen(["sleep", "60"]))
            body["pid"] = children[-1].pid
        c.request(method, target, json.dumps(body) if body is not None else None)
        r = c.getresponse()
        text = r.readline() if body and "pid" in body else r.read()
        while b'"state":"waiting"' in text:
            text = r.readline()
        print(json.dumps([r.status, text.decode()]), flush=True)
        c.close()
finally:
    for child in children:
        child.kill()
"""


def name_of(row: Row) -> str:
    """How a row is called in a test's id."""
    return f"{row.method} {row.path}"


def target_of(row: Row, id: str = "0") -> str:
    """A row's path with something in its places, and no answer that goes on."""
    return re.sub(r"\{\w+(?::\w+)?\}", id, row.path) + ("?follow=0" if row.path.endswith("/events") else "")


def bearer(daemon: Daemon) -> dict[str, str]:
    """The header that a write over TCP needs."""
    return {"authorization": f"Bearer {daemon.token}"}


class Stranger:
    """Another user's process that asks over the unix socket, as often as one likes."""

    def __init__(self, daemon: Daemon) -> None:
        for folder in (daemon.runtime.parent, daemon.runtime):
            folder.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM, str(OTHER), daemon.socket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        """Send one request; returns the status and the (first line of the) answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([method, target, body]) + "\n")
        self.process.stdin.flush()
        status, text = json.loads(self.process.stdout.readline())
        return status, json.loads(text) if text.startswith("{") else text

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon whose settling takes no time."""
    with one_daemon(config=STEADY | {"settle": {"policy": "never"}}, simulate=4) as made:
        yield made


@pytest.fixture(scope="module")
def stranger(daemon: Daemon) -> Iterator[Stranger]:
    """Another user of the same host."""
    made = Stranger(daemon)
    yield made
    made.close()


# What no web page can reach.


@pytest.mark.parametrize("row", [*ROWS, None], ids=lambda row: name_of(row) if row else "nowhere")
async def test_no_page_reaches_any_route(daemon: Daemon, row: Row | None) -> None:
    """A bent name, a foreign origin, a form of another site: even with the token."""
    method, target = (row.method, target_of(row)) if row is not None else ("GET", "/nowhere")
    port = daemon.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1:1", f"0.0.0.0:{port}"):
        answer = await daemon.ask(method, target, tcp=True, headers={"host": host} | bearer(daemon))
        assert (answer.status, answer.json["kind"]) == (421, "unknown_host"), host
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"http://evil.example:{port}"},
        {"origin": "file://"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ):
        for tcp in (True, False):
            answer = await daemon.ask(method, target, tcp=tcp, headers=headers | bearer(daemon))
            assert (answer.status, answer.json["kind"]) == (403, "foreign_origin"), headers
            assert "access-control-allow-origin" not in answer.headers


async def test_a_link_to_the_page_may_stand_anywhere(daemon: Daemon) -> None:
    """In a chat or a wiki: following it is no request of that page's."""
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert (await daemon.get("/", headers=headers)).status == 200


# Who may.


@pytest.mark.parametrize("row", WRITES, ids=name_of)
async def test_no_write_over_tcp_without_the_token(daemon: Daemon, row: Row) -> None:
    """Every local user reaches the port."""
    target = target_of(row)
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": daemon.token},
        {"authorization": f"Basic {daemon.token}"},
        {"cookie": f"token={daemon.token}"},
        {"x-forwarded-for": "127.0.0.1"},
    ):
        answer = await daemon.ask(row.method, target, {}, tcp=True, headers=headers)
        assert (answer.status, answer.json["kind"]) == (401, "unauthorized"), headers
        assert answer.headers["www-authenticate"] == "Bearer"
        cure = "gpulockd token" if "authorization" in headers else "Authorization: Bearer"
        assert cure in answer.json["hint"]
        assert daemon.token not in answer.body.decode()
    joined = "&" if "?" in target else "?"
    assert (await daemon.ask(row.method, f"{target}{joined}token={daemon.token}", {}, tcp=True)).status == 401


@pytest.mark.parametrize("row", [row for row in ROWS if row.access == "free"], ids=name_of)
async def test_every_read_is_free(daemon: Daemon, row: Row) -> None:
    """A dashboard and a probe have no token."""
    assert (await daemon.get(target_of(row))).status in (200, 404, 503)


@pytest.mark.parametrize("row", WRITES, ids=name_of)
async def test_the_token_and_root_pass(daemon: Daemon, row: Row) -> None:
    """What they send is then looked at: here it says nothing that could be done."""
    for how in ({"tcp": True, "headers": bearer(daemon)}, {"tcp": False}):
        answer = await daemon.open(row.method, target_of(row, "nothing-here"), raw=b"[]", **how)
        assert answer.status not in (401, 403), name_of(row)
        await answer.aclose()


@NOBODY_ELSE
@pytest.mark.parametrize("row", [row for row in WRITES if row.access == "operator"], ids=name_of)
async def test_what_is_everybodys_another_user_may_not_change(stranger: Stranger, row: Row) -> None:
    """Whatever the body says: it is not even read."""
    for body in (None, {}, {"reason": "mine"}):
        status, problem = await anyio.to_thread.run_sync(stranger.ask, row.method, target_of(row), body)
        assert (status, problem["kind"]) == (403, "forbidden")
        assert "may not change what is everybody's" in problem["detail"]
        assert problem["hint"]


def test_every_route_for_owners_is_tried_here() -> None:
    """A new one must be added to the two tests below, or be an operator's."""
    assert {name_of(row) for row in WRITES if row.access == "writer"} == OWNERS


ATTEMPTS = [
    ("PATCH", "/api/v1/leases/{id}", {"percent": 50}),
    ("PATCH", "/api/v1/leases/{id}", {"stop": True}),
    ("PATCH", "/api/v1/leases/0", {"ttl": "1h"}),
    ("DELETE", "/api/v1/leases/{id}", None),
    ("DELETE", "/api/v1/leases/0", None),
    ("DELETE", "/api/v1/leases/gpu_lock:0", None),
    ("POST", "/api/v1/monitoring/release-lock", {"lock_key": "gpu_lock:0"}),
    ("POST", "/api/v1/monitoring/lock/release", {"lock_key": "gpu_lock:0"}),
]


@NOBODY_ELSE
async def test_another_users_lease_is_left_alone(daemon: Daemon, stranger: Stranger) -> None:
    """Whatever names it."""
    holding = await daemon.open("POST", "/api/v1/leases", {"task": "roots", "gpus": [0]})
    lease = await holding.until("granted")
    for method, target, body in ATTEMPTS:
        status, problem = await anyio.to_thread.run_sync(stranger.ask, method, target.format(id=lease["lease"]), body)
        assert (status, problem["kind"]) == (403, "forbidden"), (method, target)
    # Nor may it be held for a process of somebody else's, whatever is said of it.
    for pid in (1, os.getpid()):
        status, problem = await anyio.to_thread.run_sync(stranger.ask, "POST", "/api/v1/leases", {"pid": pid})
        assert (status, problem["kind"]) == (422, "impossible")
    found = (await daemon.get("/api/v1/leases")).json["leases"]
    assert [(one["id"], one["percent"]) for one in found] == [(lease["lease"], None)]
    await holding.aclose()
    await eventually(lambda: _nothing_held(daemon))


@NOBODY_ELSE
@pytest.mark.parametrize(("method", "target", "body"), [one for one in ATTEMPTS if one[2] != {"ttl": "1h"}])
async def test_its_own_lease_is_a_users_to_change(
    daemon: Daemon, stranger: Stranger, method: str, target: str, body: Any
) -> None:
    """Without root, and without the token."""
    wish = {"task": "theirs", "gpus": [0], "pid": "child", "max_wait_time": 20}
    status, lease = await anyio.to_thread.run_sync(stranger.ask, "POST", "/api/v1/leases", wish)
    assert (status, lease["state"]) == (200, "granted")
    status, said = await anyio.to_thread.run_sync(stranger.ask, method, target.format(id=lease["lease"]), body)
    assert status == 200, said
    if method == "PATCH":
        assert (await daemon.ask("PATCH", "/api/v1/leases/0", {"percent": 60}, tcp=True, headers=bearer(daemon))).json[
            "percent"
        ] == 60
        assert (await daemon.ask("DELETE", "/api/v1/leases/0")).status == 200  # root may too
    await eventually(lambda: _nothing_held(daemon))


async def _nothing_held(daemon: Daemon) -> bool:
    found = (await daemon.get("/api/v1/leases")).json["leases"]
    gpus = (await daemon.get("/api/v1/gpus")).json["gpus"]
    return not found and all(gpu["state"] == "ready" for gpu in gpus)


# What nobody is told.


async def test_no_secret_is_said_anywhere(daemon: Daemon) -> None:
    """Not in an answer, not in the log, not on a command line that every user can list."""
    for row in ROWS:
        if row.method == "GET":
            answer = await daemon.get(target_of(row), headers=bearer(daemon))
            assert daemon.token.encode() not in answer.body, row.path
    assert daemon.token not in daemon.log
    for listed in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert daemon.token.encode() not in listed.read_bytes()
        except OSError:
            continue
