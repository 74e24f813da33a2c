"""What the runs on this host use: CPU time of all their processes, and whether their cards work.

Its law: of a run that this host does not see whole, nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gpulockd.daemon.usage import Sample
from gpulockd.errors import GpuLockError
from gpulockd.hardware.cards import Cards
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.processes.table import Table, take_table
from gpulockd.model import Snapshot


class Members(Protocol):
    """Knows the processes of runs, by lease id; empty if it knows none."""

    def members(self, lease: str) -> frozenset[Process]: ...


class Sampling:
    """Samples of all runs of a picture: call it."""

    def __init__(self, runs: Members, cards: Cards) -> None:
        self._runs = runs
        self._cards = cards

    async def __call__(self, snapshot: Snapshot) -> Mapping[str, Sample]:
        """The samples, by lease id; a lease of which nothing is known is left out."""
        held = [lease for lease in snapshot.leases if lease.state == "held" and self._runs.members(lease.id)]
        if not held:
            return {}
        try:
            table = await take_table()
        except TimeoutError:
            return {}
        uuids = {record.gpu.key: record.gpu.uuid for record in snapshot.gpus}
        keys = sorted({key for lease in held for key in lease.gpus})
        on_cards = {key: await self._is_busy(uuids.get(key)) for key in keys}
        return {
            lease.id: Sample(
                cpu_ticks=cpu_ticks_of(self._runs.members(lease.id), table),
                gpu_busy=any_busy([on_cards[key] for key in lease.gpus]),
            )
            for lease in held
        }

    async def _is_busy(self, uuid: str | None) -> bool | None:
        if uuid is None:
            return None
        try:
            utilization = (await self._cards.read(uuid)).utilization
        except GpuLockError:
            return None
        return None if utilization is None else utilization > 0


def cpu_ticks_of(members: frozenset[Process], table: Table) -> int | None:
    """The CPU time of all of a run; None if one of them was not seen."""
    ticks = 0
    for process in members:
        stat = table.get(process.pid)
        if stat is None or stat.process != process:
            return None
        ticks += stat.cpu_ticks
    return ticks


def any_busy(cards: list[bool | None]) -> bool | None:
    """Whether any of the cards works; None if one does not tell and no other works."""
    if any(cards):
        return True
    return None if None in cards or not cards else False
