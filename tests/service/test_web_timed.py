"""Leases for a time: their users were told how long, so no stop, crash or absence of the daemon makes it shorter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import anyio
import pytest

from gpulockd.web.asking import MOST_LEFT_HERE
from tests.daemons import STEADY, Daemon, daemon_folder, eventually, running_daemon

SESSION = {"ttl": 3.2, "keepalive": 0.3, "rpc_deadline": 0.8, "margin": 0.1, "claim_window": 0.8}
BRISK: dict[str, Any] = {"session": SESSION, "settle": {"policy": "never"}}
CONFIG = STEADY | {"settle": {"policy": "never"}}


async def _granted(daemon: Daemon, ttl: str) -> dict[str, Any]:
    asked = await daemon.open("POST", "/api/v1/leases", {"task": "timed", "ttl": ttl})
    told: dict[str, Any] = await asked.until("granted")
    await asked.ends()
    return told


async def _held(daemon: Daemon) -> list[str]:
    return [lease["id"] for lease in (await daemon.get("/api/v1/leases")).json["leases"]]


async def _ends_of(daemon: Daemon, lease: str) -> list[tuple[str, str]]:
    body = (await daemon.get("/api/v1/events?since=10m&follow=0")).body.decode()
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]
    ends = [event for event in events if event.get("lease") == lease and event["type"] != "lock_acquired"]
    return [(event["type"], event.get("reason", "")) for event in ends]


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_lease_for_a_time_outlives_the_daemon(how: str) -> None:
    """Also when it is away for longer than a session may be silent: two users would meet on the gpu."""
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=BRISK, simulate=1) as first:
            lease = await _granted(first, "10m")
            await (first.stop() if how == "stopped" else first.kill())
        await anyio.sleep(1.5 * SESSION["ttl"])
        async with running_daemon(base=base, config=BRISK, simulate=1) as second:
            assert await _held(second) == [lease["lease"]]
            await anyio.sleep(1.5 * SESSION["ttl"])
            answer = await second.ask("PATCH", f"/api/v1/leases/{lease['lease']}", {"ttl": "20m"})
            assert (answer.status, answer.json["token"]) == (200, lease["token"])
            assert answer.json["ends_in_s"] > 1100
            assert await _ends_of(second, lease["lease"]) == []
            # After its time it ends as what it was, and nobody need know of it any more.
            await second.ask("PATCH", f"/api/v1/leases/{lease['lease']}", {"ttl": "200ms"})
            assert (await _granted(second, "1s"))["token"] > lease["token"]
            assert await _ends_of(second, lease["lease"]) == [("lock_expired", "expired")]
            file = second.state / f"timed-{second.pool}.json"
            await eventually(lambda: lease["lease"] not in json.loads(file.read_bytes())["leases"])


async def test_a_lease_whose_time_was_over_meanwhile_has_expired() -> None:
    """A daemon that comes late ends it as it would have ended then."""
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=CONFIG, simulate=1) as first:
            lease = await _granted(first, "500ms")
            await first.kill()
        async with running_daemon(base=base, config=CONFIG, simulate=1) as second:

            async def ended() -> bool:
                return await _held(second) == []

            await eventually(ended)
            assert await _ends_of(second, lease["lease"]) == [("lock_expired", "expired")]


async def test_what_is_renewed_at_its_end_goes_on_or_is_said_to_have_ended() -> None:
    """A 200 for a lease that ends all the same puts two users on one gpu."""
    seen = set()
    async with running_daemon(config=CONFIG, simulate=1) as daemon:
        for turn in range(15):
            lease = await _granted(daemon, "100ms")
            await anyio.sleep(0.08 + turn * 0.002)
            path = f"/api/v1/leases/{lease['lease']}"
            answer = await daemon.ask("PATCH", path, {"ttl": "60s"})
            await anyio.sleep(0.1)
            stands = lease["lease"] in await _held(daemon)
            seen.add((answer.status, stands))
            if stands:
                await daemon.ask("DELETE", path)
    assert seen <= {(200, True), (404, False), (410, False)}


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
async def test_one_user_cannot_leave_more_than_the_daemon_can_bear() -> None:
    """Each costs it a thread and connections, and no open request counts them."""
    script = """
import http.client, json, os, socket, sys
os.setgroups([]); os.setgid(65533); os.setuid(65533)
for number in range(int(sys.argv[2])):
    asked = http.client.HTTPConnection("localhost")
    asked.sock = socket.socket(socket.AF_UNIX)
    asked.sock.connect(sys.argv[1])
    asked.request("POST", "/api/v1/leases", json.dumps({"key": "slot-%d" % number, "ttl": "1h", "task": "many"}))
    answer = asked.getresponse()
    line = json.loads(answer.readline())
    print(answer.status, line.get("state"), line.get("kind"), bool(line.get("hint")))
"""
    async with running_daemon(config=CONFIG, simulate=1) as daemon:
        for folder in (daemon.runtime.parent, daemon.runtime):
            folder.chmod(0o755)
        command = [sys.executable, "-I", "-c", script, daemon.socket, str(MOST_LEFT_HERE + 1)]
        done = await anyio.run_process(command, stderr=subprocess.STDOUT)
        *granted, last = done.stdout.decode().splitlines()
        assert granted == ["200 granted None False"] * MOST_LEFT_HERE
        assert last == "429 None too_many True"
        await _granted(daemon, "1s")  # who runs the daemon is another
