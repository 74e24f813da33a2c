"""Leases for a process: its user was told that they last as long as it lives, whatever becomes of the daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.daemons import QUICK, Daemon, daemon_folder, eventually, running_daemon
from tests.system.commands import ask, clean_env, command

LOCK_TIMEOUT_S = 5.0
GRACE_S = 0.5
CONFIG = {
    "session": {"ttl": LOCK_TIMEOUT_S, "keepalive": 0.5, "rpc_deadline": 1.0, "margin": 0.1, "claim_window": 2.0},
    "gpu_lock": {"lock_timeout": LOCK_TIMEOUT_S},
    "gpu_lock_monitor": {"monitor_interval": 0.5, "heartbeat": {"interval": 0.5, "timeout": 5}},
    "settle": {"grace": GRACE_S},
}
"""A process that nobody speaks for is noticed within seconds, and a daemon may take as long to start."""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that may hold, and does nothing."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Another one."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


async def _granted(daemon: Daemon, wish: dict[str, Any]) -> dict[str, Any]:
    asked = await daemon.open("POST", "/api/v1/leases", wish)
    told: dict[str, Any] = await asked.until("granted")
    await asked.ends()
    return told


async def _leases(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(daemon, "leases")
    return found


async def _ends_of(daemon: Daemon, lease: str) -> list[tuple[str, str]]:
    body = (await daemon.get("/api/v1/events?since=10m&follow=0")).body.decode()
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]
    ends = [event for event in events if event.get("lease") == lease and event["type"].startswith("lock_")]
    return [(event["type"], event.get("reason", "")) for event in ends if event["type"] != "lock_acquired"]


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_a_lease_for_a_process_outlives_the_daemon(how: str, sleeper: subprocess.Popen[bytes]) -> None:
    """Somebody must go on to say that it is used: else it is silent, expires, and its process is ended."""
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=CONFIG, simulate=1) as first:
            lease = await _granted(first, {"pid": sleeper.pid})
            await (first.stop() if how == "stopped" else first.kill())
        async with running_daemon(base=base, config=CONFIG, simulate=1) as second:
            await anyio.sleep(1.5 * LOCK_TIMEOUT_S)
            assert [(one["id"], one["token"]) for one in await _leases(second)] == [(lease["lease"], lease["token"])]
            assert await _ends_of(second, lease["lease"]) == []
            assert sleeper.poll() is None
            sleeper.kill()
            sleeper.wait()
            await eventually(lambda: _is_free(second), within_s=30)
            assert await _ends_of(second, lease["lease"]) == [("lock_expired", "died")]
            await eventually(lambda: _is_forgotten(second, lease["lease"]), within_s=30)


async def _is_free(daemon: Daemon) -> bool:
    return await _leases(daemon) == []


async def _has_queue(daemon: Daemon) -> bool:
    return len(ask(daemon, "queue")) == 1


async def _is_forgotten(daemon: Daemon, lease: str) -> bool:
    return lease not in (daemon.state / f"timed-{daemon.pool}.json").read_text()


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_its_own_user_releases_it_at_the_next_daemon_too(how: str, sleeper: subprocess.Popen[bytes]) -> None:
    """As a revocation it would end the process: the user's shell, for giving a GPU back."""
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=CONFIG, simulate=1) as first:
            lease = await _granted(first, {"pid": sleeper.pid})
            await (first.stop() if how == "stopped" else first.kill())
        async with running_daemon(base=base, config=CONFIG, simulate=1) as second:
            answer = await second.ask("DELETE", f"/api/v1/leases/{lease['lease']}")
            assert (answer.status, answer.json["reason"]) == (200, "released")
            await eventually(lambda: _is_free(second), within_s=30)
            assert await _ends_of(second, lease["lease"]) == [("lock_released", "released")]
            await anyio.sleep(4 * GRACE_S)
            assert sleeper.poll() is None


async def test_a_process_that_died_while_there_was_no_daemon_holds_nothing(
    sleeper: subprocess.Popen[bytes], other: subprocess.Popen[bytes]
) -> None:
    """Its number may be another's by then."""
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=CONFIG, simulate=1) as first:
            lease = await _granted(first, {"pid": sleeper.pid})
            await first.kill()
        sleeper.kill()
        sleeper.wait()
        async with running_daemon(base=base, config=CONFIG, simulate=1) as second:
            await eventually(lambda: _is_free(second), within_s=30)
            await eventually(lambda: _is_forgotten(second, lease["lease"]), within_s=30)
            assert (await _granted(second, {"pid": other.pid}))["token"] > lease["token"]


async def test_a_request_that_is_asked_again_is_answered_with_the_same_grant(
    sleeper: subprocess.Popen[bytes], other: subprocess.Popen[bytes]
) -> None:
    """Who was not told asks again: he must not meet his own lease, nor get a second one."""
    wish = {"pid": sleeper.pid, "ticket": os.urandom(16).hex()}
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=CONFIG, simulate=1) as first:
            lease = await _granted(first, wish)
            assert lease["lease"] == wish["ticket"]
            again = await _granted(first, wish)
            assert (again["lease"], again["token"], again["env"]) == (lease["lease"], lease["token"], lease["env"])
            await first.kill()
        async with running_daemon(base=base, config=CONFIG, simulate=1) as second:
            again = await _granted(second, wish)
            assert (again["lease"], again["token"]) == (lease["lease"], lease["token"])
            # It is that process's: nobody else has it by its name, and the process gets no second one.
            answer = await second.ask("POST", "/api/v1/leases", {**wish, "pid": other.pid, "max_wait_time": 0})
            assert (answer.status, answer.json["kind"]) == (409, "ended")
            answer = await second.ask("POST", "/api/v1/leases", {**wish, "ticket": os.urandom(16).hex()})
            assert (answer.status, answer.json["kind"]) == (409, "would_deadlock")
            assert len(await _leases(second)) == 1
            await second.kill()
        async with running_daemon(base=base, config=CONFIG, simulate=1) as third:
            assert (await _granted(third, wish))["token"] == lease["token"]
            assert not await _is_forgotten(third, lease["lease"])


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_who_waits_with_a_ticket_keeps_the_place_at_the_next_daemon(
    how: str, sleeper: subprocess.Popen[bytes], other: subprocess.Popen[bytes]
) -> None:
    """Asked anew it would stand in the queue twice, behind all who came meanwhile."""
    async with daemon_folder() as base:
        wish = {"pid": sleeper.pid, "ticket": os.urandom(16).hex()}
        async with running_daemon(base=base, config=CONFIG, simulate=1) as first:
            await _granted(first, {"pid": other.pid})
            waiting = await first.open("POST", "/api/v1/leases", wish)
            await waiting.until("waiting")
            await (first.stop() if how == "stopped" else first.kill())
        async with running_daemon(base=base, config=CONFIG, simulate=1) as second:
            waiting = await second.open("POST", "/api/v1/leases", wish)
            await waiting.until("waiting")
            assert [one["id"] for one in ask(second, "queue")] == [wish["ticket"]]
            await second.ask("DELETE", "/api/v1/leases/0")
            assert (await waiting.until("granted"))["lease"] == wish["ticket"]


async def test_what_was_granted_and_never_told_ends_by_itself(sleeper: subprocess.Popen[bytes]) -> None:
    """Nobody knows of it, so nobody would give it back while the process lives."""
    config = CONFIG | QUICK
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=config, simulate=1) as first:
            lease = await _granted(first, {"pid": sleeper.pid})
            await first.kill()
            (first.state / f"timed-{first.pool}.json").unlink()  # as if it had been killed just before it told
        async with running_daemon(base=base, config=config, simulate=1) as second:
            await eventually(lambda: _is_free(second), within_s=60)
            assert ("lock_released", "released") in await _ends_of(second, lease["lease"])
            await anyio.sleep(2 * GRACE_S)
            assert sleeper.poll() is None


async def test_a_ticket_can_be_ended_before_its_request_has_come(sleeper: subprocess.Popen[bytes]) -> None:
    """Who is interrupted does not know how far the request has come; after this it holds nothing, now and later."""
    async with running_daemon(config=CONFIG, simulate=1) as daemon:
        wish = {"pid": sleeper.pid, "ticket": os.urandom(16).hex()}
        answer = await daemon.ask("DELETE", f"/api/v1/leases/{wish['ticket']}?pending=1")
        assert answer.status == 404
        answer = await daemon.ask("POST", "/api/v1/leases", wish)
        assert (answer.status, answer.json["kind"]) == (409, "ended")
        wish["ticket"] = os.urandom(16).hex()
        await _granted(daemon, wish)
        answer = await daemon.ask("DELETE", f"/api/v1/leases/{wish['ticket']}?pending=1")
        assert (answer.status, answer.json["reason"]) == (200, "released")
        await eventually(lambda: _is_free(daemon), within_s=30)
        await anyio.sleep(2 * GRACE_S)
        assert sleeper.poll() is None


def _interrupted(daemon: Daemon, at: int, number: signal.Signals, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "tests.system.interrupted", str(at), str(int(number)), *words]
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    return subprocess.run(program, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("acquire", "--pid", "PID"), signal.SIGINT),
        (("acquire", "--ttl", "10m"), signal.SIGTERM),
        (("adopt", "PID"), signal.SIGINT),
    ],
)
async def test_who_is_interrupted_holds_what_was_printed_and_nothing_else(
    words: tuple[str, ...], number: signal.Signals, sleeper: subprocess.Popen[bytes]
) -> None:
    """Else a GPU is lost for as long as the shell lives, and nobody knows under which name."""
    words = tuple(str(sleeper.pid) if word == "PID" else word for word in words)
    async with running_daemon(simulate=1) as daemon:

        async def run(at: int) -> subprocess.CompletedProcess[str]:
            return await anyio.to_thread.run_sync(lambda: _interrupted(daemon, at, number, *words))

        async def end_as(printed: str) -> None:
            """Only what was printed is held, and is given back."""

            async def holds() -> bool:
                return [one["id"] for one in await _leases(daemon)] == printed.split()

            await eventually(holds, within_s=30)
            for lease in printed.split():
                await daemon.ask("DELETE", f"/api/v1/leases/{lease}")
            await eventually(lambda: _is_free(daemon), within_s=30)

        done = await run(10**9)
        assert done.returncode == 0, done.stderr
        lines = int(done.stderr.rpartition("lines ")[2])
        await end_as(done.stdout)
        # Before it asks a signal just ends it.
        for at in range(lines // 2, lines, max(1, lines // 22)):
            done = await run(at)
            assert done.returncode in (0, -number, 128 + number), (at, done.stderr)
            assert bool(done.stdout) == (done.returncode == 0), (at, done.stderr)
            await end_as(done.stdout)


async def test_who_waits_survives_a_daemon_that_is_killed_before_it_says_anything(
    sleeper: subprocess.Popen[bytes], other: subprocess.Popen[bytes]
) -> None:
    """A restart is nothing to those who wait; also not to who has just begun to."""
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=CONFIG, simulate=1) as first:
            await _granted(first, {"pid": other.pid})
            with (base / "said").open("wb") as said:
                waiter = subprocess.Popen(
                    command("acquire", "--pid", str(sleeper.pid)),
                    env=clean_env(GPULOCKD_SOCKET=first.socket),
                    stdout=subprocess.PIPE,
                    stderr=said,
                )
            # The first words come a moment after the place in the queue.
            await eventually(lambda: _has_queue(first), within_s=30)
            await first.kill()
        async with running_daemon(base=base, config=CONFIG, simulate=1) as second:
            await eventually(lambda: _has_queue(second), within_s=30)
            other.kill()
            printed, _ = await anyio.to_thread.run_sync(lambda: waiter.communicate(timeout=60))
            assert waiter.returncode == 0, (base / "said").read_text()
            assert [one["id"] for one in await _leases(second)] == [printed.decode().strip()]
