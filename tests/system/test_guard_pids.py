"""What a pid means to people when programs live in pid namespaces of their own."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.daemons import Daemon, daemon_folder, eventually, running_daemon
from tests.states import until
from tests.system.commands import call
from tests.system.holders import INSIDE, holders
from tests.system.test_guard import is_granted

CONFIG = {"session": {"ttl": 10, "keepalive": 1, "rpc_deadline": 1, "margin": 0.5, "claim_window": 2}}
ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="needs root for a pid namespace of its own")


async def only(daemon: Daemon, what: str) -> dict[str, object]:
    """The one lease or queued ticket."""
    found: list[dict[str, object]] = []

    async def is_there() -> bool:
        found[:] = (await daemon.get(f"/api/v1/{what}")).json[what]
        return len(found) == 1

    await eventually(is_there, 30)
    return found[0]


@ROOT_ONLY
async def test_the_guard_tells_the_hosts_pid_of_who_holds_and_who_waits_in_a_container(tmp_path: Path) -> None:
    """`kill` with the number that a container's process calls itself hits a stranger."""
    async with running_daemon(config=CONFIG) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", prefix=INSIDE)
            await first.is_in()
            second = start.start("second", prefix=INSIDE)
            await only(daemon, "queue")
            for holder, what in ((first, "leases"), (second, "queue")):
                (child,) = psutil.Process(holder.process.pid).children()

                async def is_seen(what: str = what, pid: int = child.pid) -> bool:
                    one = await only(daemon, what)
                    return (one["pid"], one["pid_seen"]) == (pid, True)

                await eventually(is_seen, 30)
            (child,) = psutil.Process(first.process.pid).children()
            assert f"{child.pid} " in call(daemon, "status").stdout


@ROOT_ONLY
async def test_a_containers_process_that_only_the_ledger_knows_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Nobody has its number here, or a stranger, while it lives and holds."""
    config = CONFIG | {"session": CONFIG["session"] | {"ttl": 60}}
    async with daemon_folder() as base:
        async with running_daemon(config=config, base=base) as daemon:
            await daemon.kill()
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first", prefix=INSIDE)
            await until(lambda: is_granted(daemon))
            (child,) = psutil.Process(first.process.pid).children()
            child.suspend()  # or it would name itself to the guard
            async with running_daemon(config=config, base=base) as again:
                lease = await only(again, "leases")
                assert lease["pid_seen"] is False
                second = start.start("second")
                await only(again, "queue")
                child.resume()
                assert await first.is_in() == lease["token"]
                assert second.said("in") is None


@ROOT_ONLY
async def test_without_a_guard_a_containers_pid_is_marked_as_its_own(tmp_path: Path) -> None:
    """A number that nobody vouches for must not look like one of the host's."""
    async with running_daemon(config=CONFIG | {"gpus": {"guard": False}}) as daemon:
        with holders(tmp_path / "h", daemon) as start:
            first = start.start("first")
            await first.is_in()
            lease = await only(daemon, "leases")
            assert (lease["pid"], lease["pid_seen"]) == (first.process.pid, True)
            first.leave()
            await first.is_out()
            inside = start.start("inside", prefix=INSIDE)
            await inside.is_in()
            lease = await only(daemon, "leases")
            assert (lease["pid"], lease["pid_seen"]) == (1, False)
            assert "1 (its own)" in call(daemon, "status").stdout
            late = start.start("late", wish="dict(max_wait_time=0)")
            await late.is_out()
            assert "its own pid 1 on" in (late.said("lost") or "")
