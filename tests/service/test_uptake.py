"""A daemon's copy of the configuration, when the store loses everything in the middle of a look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpulockd.config.live import Tree
from gpulockd.daemon.configkept import KeptFile
from gpulockd.daemon.configuration import Layers
from gpulockd.daemon.current import Current
from gpulockd.daemon.inforce import InForce
from gpulockd.daemon.uptake import Uptake
from gpulockd.ledger import revisions as r
from gpulockd.ledger.verbs import Call
from tests.lua.fleet import Fleet
from tests.servers import Server

MOST_CALLS = 30
"""More than one look asks."""


class Host:
    """One daemon's configuration in a fleet. Before the call that is number `loses_at` the store loses all."""

    def __init__(self, fleet: Fleet, folder: Path, pool: str) -> None:
        self.pool = pool
        self.loses_at = 0
        self._fleet = fleet
        folder.mkdir()
        self._kept = KeptFile(str(folder))
        layers = Layers(file="config.yml", file_tree={"gpu_lock": {"poll_interval": 2.0}})
        in_force = InForce(pool, Current(layers.settings()), layers)
        self._uptake = Uptake(in_force, self._ask, _publish, self._kept, "file")

    async def look(self) -> None:
        """Compare with the store and take up."""
        await self._uptake.look()

    async def _ask(self, call: Call[Any]) -> Any:
        if self.loses_at:
            self.loses_at -= 1
            if not self.loses_at:
                self._fleet.lose_all()
        return await self._fleet.ask(call)


async def _publish(_: Tree, __: tuple[str, str] | None) -> None:
    """Nobody listens."""


async def revise(fleet: Fleet, expected: int, poll_interval: float) -> None:
    """An operator's change."""
    live = {"all": {"gpu_lock": {"poll_interval": poll_interval}}, "pools": {}}
    diff = (r.Change(path="gpu_lock.poll_interval", before=None, after=poll_interval),)
    made = await r.revise(
        fleet.ask, expected=expected, live=live, diff=diff, author="ana", reason=f"poll {poll_interval}", origin="api"
    )
    assert isinstance(made, r.Revision), made


@pytest.mark.parametrize("alone", [False, True], ids=["two hosts", "one host"])
async def test_a_loss_in_the_middle_of_a_look_costs_nothing_that_was_kept(
    server: Server, tmp_path: Path, alone: bool
) -> None:
    """A daemon that takes up a change reads history, bases and audit one after the other."""
    for loses_at in range(1, MOST_CALLS):
        with Fleet(server.url) as fleet:
            hosts = [Host(fleet, tmp_path / f"{loses_at}-{pool}", pool) for pool in ("a", "b")[: 1 if alone else 2]]
            for host in hosts:
                await host.look()
            await revise(fleet, 0, 0.5)
            for host in hosts:
                await host.look()
            await revise(fleet, 1, 0.7)
            hosts[-1].loses_at = loses_at
            await hosts[-1].look()
            was_lost = not hosts[-1].loses_at
            for host in (*hosts, *hosts):
                await host.look()
            told = f"lost before call {loses_at}"
            numbers = [revision.number for revision in await r.history(fleet.ask)]
            assert numbers[-2:] == [1, 0], told
            for host in hosts:
                assert 0 in await r.bases(fleet.ask, host.pool), f"{told}: base of {host.pool}"
            revised = [line.revision for line in await r.audits(fleet.ask) if line.what == "revised"]
            assert 1 in revised, f"{told}: audit"
            if not was_lost:
                return
    raise AssertionError(f"a look asks more than {MOST_CALLS} times")
