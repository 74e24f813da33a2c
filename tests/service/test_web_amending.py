"""What a lease's user says of it over HTTP: progress, a new time, "stop"; and leases that no process holds."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.daemons import STEADY, Daemon, Reply, daemon_folder, eventually, running_daemon
from tests.service.test_web import BRISK
from tests.system.commands import one_daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon whose cards settle at once."""
    with one_daemon(config=STEADY | {"settle": {"policy": "never"}}) as made:
        yield made


async def patch(daemon: Daemon, id: str, **said: Any) -> Reply:
    """PATCH a lease."""
    return await daemon.ask("PATCH", f"/api/v1/leases/{id}", said)


async def leases(daemon: Daemon) -> list[Any]:
    """All leases."""
    found: list[Any] = (await daemon.get("/api/v1/leases")).json["leases"]
    return found


async def timed(daemon: Daemon, ttl: str, **wish: Any) -> Any:
    """A lease for a time: its line, after the answer has ended."""
    asked = await daemon.open("POST", "/api/v1/leases", {"task": "timed", "ttl": ttl, "max_wait_time": 20} | wish)
    line = await asked.until("granted")
    await asked.ends()
    await asked.aclose()
    return line


async def test_progress_is_told_from_outside(daemon: Daemon) -> None:
    """A shell script reports by curl; what it leaves out stays."""
    holding = await daemon.open("POST", "/api/v1/leases", {"task": "a"})
    lease = (await holding.until("granted"))["lease"]
    said = (await patch(daemon, lease, percent=45, message="frame 100")).json
    assert (said["percent"], said["note"], said["ends_in_s"], said["stopping"]) == (45, "frame 100", None, False)
    await patch(daemon, lease, percent=46.5)
    await patch(daemon, lease, message="frame 101")
    found = (await leases(daemon))[0]
    assert (found["percent"], found["note"]) == (46.5, "frame 101")
    assert found["heartbeat_age_s"] is not None
    await holding.aclose()
    await eventually(lambda: _none(daemon))


@pytest.mark.parametrize(
    ("said", "status"),
    [({}, 422), ({"percent": 101}, 422), ({"percent": "x"}, 422), ({"progress": 4}, 422), ({"ttl": "soon"}, 422)],
)
async def test_what_says_nothing_is_refused(daemon: Daemon, said: Any, status: int) -> None:
    """With the name of the field."""
    assert (await daemon.ask("PATCH", "/api/v1/leases/0", said)).status == status


async def test_a_lease_that_is_not_there_or_has_no_time(daemon: Daemon) -> None:
    """404 and 409 are two things."""
    assert (await patch(daemon, "nothing", percent=1)).status == 404
    holding = await daemon.open("POST", "/api/v1/leases", {"task": "a"})
    lease = (await holding.until("granted"))["lease"]
    refused = await patch(daemon, lease, ttl="1m")
    assert (refused.status, refused.json["kind"]) == (409, "not_timed")
    await holding.aclose()
    await eventually(lambda: _none(daemon))


async def test_a_lease_for_a_time_ends_with_it(daemon: Daemon) -> None:
    """Nobody has to keep a connection."""
    line = await timed(daemon, "400ms")
    assert line["state"] == "granted"
    await eventually(lambda: _none(daemon))


async def test_a_lease_for_a_time_is_renewed(daemon: Daemon) -> None:
    """As long as its user says so; and given back by the user before."""
    lease = (await timed(daemon, "5s"))["lease"]
    said = (await patch(daemon, lease, ttl="1h")).json
    assert 3500 < said["ends_in_s"] <= 3600
    await anyio.sleep(6.0)
    assert [found["id"] for found in await leases(daemon)] == [lease]
    assert (await daemon.ask("DELETE", f"/api/v1/leases/{lease}")).status == 200
    await eventually(lambda: _none(daemon))


async def test_a_lease_for_a_time_is_renewed_for_as_long_as_it_was_asked_for(daemon: Daemon) -> None:
    """A loop that renews need not know for how long."""
    lease = (await timed(daemon, "90s"))["lease"]
    assert 30 < (await patch(daemon, lease, renew=True)).json["ends_in_s"] <= 90
    assert (await daemon.ask("DELETE", f"/api/v1/leases/{lease}")).status == 200
    await eventually(lambda: _none(daemon))


async def test_only_the_process_that_holds_says_that_it_is_over(daemon: Daemon) -> None:
    """Any other one takes it away, which is another thing and settles."""
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        asked = await daemon.open("POST", "/api/v1/leases", {"task": "shell", "pid": sleeper.pid})
        lease = (await asked.until("granted"))["lease"]
        assert (await patch(daemon, lease, over=True)).status == 403
        assert [found["id"] for found in await leases(daemon)] == [lease]
    finally:
        sleeper.kill()
        sleeper.wait()
    await eventually(lambda: _none(daemon))


@pytest.mark.parametrize("wish", [{"ttl": "1m", "pid": 1}, {"ttl": "10ms"}, {"ttl": "8d"}, {"ttl": "x"}])
async def test_a_time_that_cannot_be_is_refused(daemon: Daemon, wish: Any) -> None:
    """Both say how long it lasts."""
    assert (await daemon.ask("POST", "/api/v1/leases", wish)).status == 422


async def test_what_is_wrong_and_what_to_do_are_said_once_each(daemon: Daemon) -> None:
    """A hint that repeats the error helps nobody."""
    lease = (await timed(daemon, "20s"))["lease"]
    said = (await patch(daemon, lease, ttl="8d")).json
    assert (said["detail"], said["hint"]) == ("ttl: 691,200 s", "say 50 ms to 7 days, and renew it")
    assert (await daemon.ask("DELETE", f"/api/v1/leases/{lease}")).status == 200
    await eventually(lambda: _none(daemon))


async def test_a_holder_is_asked_to_stop(daemon: Daemon) -> None:
    """As at the soft limit: it saves its work and leaves."""
    holding = await daemon.open("POST", "/api/v1/leases", {"task": "a"})
    lease = (await holding.until("granted"))["lease"]
    assert (await patch(daemon, lease, stop=True)).json["stopping"] is True

    async def is_told() -> bool:
        told = await daemon.ask("GET", "/api/v1/events?since=1m&follow=0")
        return any(b"stop_requested" in line and lease.encode() in line for line in told.body.splitlines())

    await eventually(is_told)
    await holding.aclose()


async def test_a_lease_for_a_process_goes_on_over_a_daemon_restart() -> None:
    """The guard of the next daemon knows the process and stands for it."""
    sleeper = subprocess.Popen(["sleep", "120"])
    try:
        async with daemon_folder() as base:
            async with running_daemon(base=base, config=BRISK) as first:
                asked = await first.open("POST", "/api/v1/leases", {"task": "shell", "pid": sleeper.pid})
                lease = (await asked.until("granted"))["lease"]
                await asked.ends()
            async with running_daemon(base=base, config=BRISK) as second:
                await anyio.sleep(5.0)  # longer than a session lives by itself
                assert [(one["id"], one["pid"]) for one in await leases(second)] == [(lease, sleeper.pid)]
                os.kill(sleeper.pid, signal.SIGKILL)
                sleeper.wait()
                await eventually(lambda: _none(second))
    finally:
        sleeper.kill()
        sleeper.wait()


async def _none(daemon: Daemon) -> bool:
    return not await leases(daemon)
