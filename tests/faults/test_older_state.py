"""The rows of upgrades: what a daemon leaves behind is read by the next one, of whichever version it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gpulockd.ledger import verbs
from gpulockd.ledger.answers import Pictured
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from gpulockd.web.timed import TimedFile
from tests.configured import history, number, roll_back, set_live, until_value, value
from tests.daemons import STEADY, Daemon, daemon_folder, eventually, running_daemon
from tests.faults.older import Version, Versions, versions
from tests.faults.scene import own_store
from tests.pools import offer, simulated
from tests.system.commands import ask
from tests.system.holders import holders

RENEWED_MS = 400
"""A daemon takes longer to start."""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that may hold, and does nothing."""
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


async def granted(daemon: Daemon, gpu: int, **wish: Any) -> dict[str, Any]:
    """A lease that the daemon keeps."""
    asked = await daemon.open("POST", "/api/v1/leases", {"gpus": [gpu], **wish})
    told: dict[str, Any] = await asked.until("granted")
    await asked.ends()
    return told


def named_in_file(daemon: Daemon, lease: str) -> bool:
    """Whether the next daemon will know that this one keeps the lease."""
    return lease in (daemon.state / f"timed-{daemon.pool}.json").read_text()


def is_kept_alive(daemon: Daemon, lease: str) -> bool:
    """Whether somebody has renewed it just now."""
    store = BlockingStore(daemon.store_url, deadline_s=5)
    seen = store.ask(verbs.snapshot(PoolKeys(daemon.pool)))
    store.close()
    assert isinstance(seen, Pictured)
    return any(one.id == lease and (one.seen_age_ms or 0) < RENEWED_MS for one in seen.snapshot.leases)


async def test_leases_that_an_earlier_version_has_left_out_are_kept(sleeper: subprocess.Popen[bytes]) -> None:
    """It leaves those of processes out when it writes; given back, the GPU would be another's beside its user."""
    async with daemon_folder() as base:
        async with running_daemon(base=base, config=STEADY, simulate=1) as first:
            lease = await granted(first, 0, pid=sleeper.pid)
            await first.kill()
            file = first.state / f"timed-{first.pool}.json"
            written = json.loads(file.read_text())
            file.write_text(json.dumps({name: written[name] for name in ("boot_id", "leases")}))
        async with running_daemon(base=base, config=STEADY, simulate=1) as second:
            await eventually(lambda: named_in_file(second, lease["lease"]))
            await eventually(lambda: is_kept_alive(second, lease["lease"]))
            assert [one["token"] for one in ask(second, "leases")] == [lease["token"]]
            answer = await second.ask("DELETE", f"/api/v1/leases/{lease['lease']}")
            assert (answer.status, answer.json["reason"]) == (200, "released")
            await eventually(lambda: not ask(second, "leases"))
            assert sleeper.poll() is None


def test_a_file_that_cannot_be_read_names_not_all(tmp_path: Path) -> None:
    """Nothing may be given back for not standing in it, by this daemon and by those after it."""
    assert TimedFile(str(tmp_path), "p").names_all
    (tmp_path / "timed-p.json").write_text('{"boot')
    damaged = TimedFile(str(tmp_path), "p")
    assert not damaged.names_all
    damaged.complete([])
    assert TimedFile(str(tmp_path), "p").names_all


@pytest.fixture(scope="module")
def both(pytestconfig: pytest.Config) -> Versions:
    """This version and the older one."""
    return versions(pytestconfig)


async def test_a_daemon_goes_on_where_one_of_the_other_version_has_stopped(
    both: Versions, sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """Forth, back and forth again: configuration, drained cards, statistics, and who holds what for how long."""
    async with AsyncExitStack() as stack:
        base = await stack.enter_async_context(daemon_folder())

        async def begun(version: Version, *args: str) -> Daemon:
            made = running_daemon(*args, env=version.env, base=base, config=STEADY, simulate=4)
            return await stack.enter_async_context(made)

        old = await begun(both.old)
        holder = stack.enter_context(holders(tmp_path / "h", old)).start("holder", **both.old.env)
        await holder.is_in()
        timed = await granted(old, 1, ttl=300)
        assert (await set_live(old, {"gpu_lock": {"max_wait_time": 77}})).status == 200
        await old.ask("POST", "/api/v1/gpus/3/drain")
        secret = old.token
        await eventually(lambda: attempts(old, 2))
        await old.kill()

        new = await begun(both.new)
        kept = await granted(new, 2, pid=sleeper.pid)
        assert (await set_live(new, {"gpu_lock": {"poll_interval": 1.5}})).status == 200
        await eventually(lambda: attempts(new, 3))
        await new.stop()

        old = await begun(both.old)
        assert (await value(old, "gpu_lock.poll_interval"), await number(old)) == (1.5, 2)
        await old.ask("PATCH", f"/api/v1/leases/{timed['lease']}", {"ttl": 400})
        await eventually(lambda: attempts(old, 3))
        await old.kill()

        new = await begun(both.new)
        assert (await value(new, "gpu_lock.max_wait_time"), new.token) == (77, secret)
        assert [one["number"] for one in await history(new)] == [2, 1, 0]
        assert {gpu["index"]: gpu["state"] for gpu in ask(new, "gpus")}[3] == "drained"
        await eventually(lambda: named_in_file(new, kept["lease"]))
        tokens = {lease["id"]: lease["token"] for lease in ask(new, "leases")}
        assert len(tokens) == 3
        assert {told["lease"]: told["token"] for told in (timed, kept)}.items() < tokens.items()
        for lease in (kept, timed):
            answer = await new.ask("DELETE", f"/api/v1/leases/{lease['lease']}")
            assert (answer.status, answer.json["reason"]) == (200, "released")
        assert (await roll_back(new))["restored"] == 0
        assert (holder.said("lost"), sleeper.poll()) == (None, None)
        holder.leave()
        await holder.is_out()
        await eventually(lambda: not ask(new, "leases"))
        assert not list(new.state.glob("*.damaged"))
        assert "Traceback" not in new.log


async def attempts(daemon: Daemon, count: int) -> bool:
    """Whether so many requests are in the statistics."""
    found = (await daemon.get("/api/v1/statistics")).json
    return bool(found["window"]["attempts"] == count)


async def test_daemons_of_both_versions_follow_one_configuration(both: Versions) -> None:
    """A fleet is upgraded host by host, and a change counts on all of them."""
    with own_store() as server:
        async with AsyncExitStack() as stack:
            hosts = []
            for version in (both.old, both.new):
                offer(server, f"of-{version}", simulated(1))  # in a store as young as this one, nobody begins yet
                where = ("--redis", server.url, "--pool", f"of-{version}")
                hosts.append(
                    await stack.enter_async_context(running_daemon(*where, env=version.env, config=STEADY, simulate=1))
                )
            for wanted, (here, there) in enumerate((hosts, hosts[::-1]), 70):
                assert (await set_live(here, {"gpu_lock": {"max_wait_time": wanted}})).status == 200
                await until_value(there, "gpu_lock.max_wait_time", wanted)
            for stable, (here, there) in zip((0, 4), (hosts, hosts[::-1]), strict=True):
                assert (await set_live(here, {"gpu_lock": {"poll_interval": 1.5}})).status == 200
                await until_value(there, "gpu_lock.poll_interval", 1.5)
                assert (await roll_back(here))["restored"] == stable
                await until_value(there, "gpu_lock.max_wait_time", 1800)
            assert [[one["number"] for one in await history(host)] for host in hosts] == [[6, 5, 4, 3, 2, 1, 0]] * 2
            assert not any("Traceback" in host.log for host in hosts)
