"""Who is on a card without a lease. A process is known by its pid and start time, never by its pid alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable

from gpulockd.daemon.judge_cards import Stranger
from gpulockd.hardware.processes.identity import Process, stat_of
from gpulockd.hardware.processes.names import describe
from gpulockd.hardware.processes.table import Memories, take_table
from gpulockd.hardware.readings import CardProcess
from gpulockd.hardware.runs import run_of
from gpulockd.model import Snapshot, TicketRecord

Members = Callable[[str], Collection[Process]]
"""The processes that the guard knows of a lease, by its id."""


Callers = Callable[[], Collection[Process]]
"""The processes of this host that have a session, whether they hold something or not."""


def no_members(lease: str) -> Collection[Process]:
    """For a daemon without a guard: the ledger's word for the holder is all there is."""
    return ()


def no_callers() -> Collection[Process]:
    """For a daemon without a guard."""
    return ()


class Strangers:
    """Finds them. A worker between two tasks keeps its context and is no stranger: it has a session, or had a run.

    :param boot_id: of this boot, so that pids of other hosts are not taken for ours
    """

    def __init__(
        self,
        boot_id: str,
        members: Members = no_members,
        callers: Callers = no_callers,
        memories: Memories | None = None,
    ) -> None:
        self._boot_id = boot_id
        self._members = members
        self._callers = callers
        self._memories = memories or Memories()
        self._kin: frozenset[Process] = frozenset()

    def __repr__(self) -> str:
        return f"<Strangers, {len(self._kin)} known>"

    async def find(
        self, snapshot: Snapshot, shown: dict[str, tuple[CardProcess, ...]]
    ) -> dict[str, tuple[Stranger, ...]]:
        """Return the strangers on each card.

        What only draws is passed over: a desktop draws on its card all day. So is who waits in the queue.

        :param snapshot: taken after the cards were looked at, so that whoever came meanwhile has a lease there
        :param shown: uuid -> the processes that the card shows
        """
        wanted = {uuid: [one for one in found if one.kind != "graphics"] for uuid, found in shown.items()}
        pids = {process.pid for found in wanted.values() for process in found} - {os.getpid()}
        if not pids:
            return {}
        friends = await self._friends(snapshot, pids)
        found: dict[str, tuple[Stranger, ...]] = {}
        for uuid, processes in wanted.items():
            strangers = [await self._named(process) for process in processes if process.pid in pids]
            found[uuid] = tuple(one for one in strangers if one is not None and one.process not in friends)
        return {uuid: strangers for uuid, strangers in found.items() if strangers}

    async def _friends(self, snapshot: Snapshot, pids: Collection[int]) -> frozenset[Process]:
        """Everybody who has, had or may get a lease here, with their descendants."""
        table = await take_table()
        tickets = [*snapshot.leases, *snapshot.queue]
        holders = {*self._processes(tickets), *self._callers()}
        for ticket in snapshot.leases:
            holders.update(self._members(ticket.id))
        ids = {ticket.id for ticket in snapshot.leases}
        tags = await self._memories.leases({table[pid].process for pid in pids if pid in table})
        run = run_of(holders, table, self._kin, lease_ids=ids, card_pids=pids, tags=tags)
        self._kin = frozenset(process for process in run if process.pid in pids)
        return run

    def _processes(self, tickets: Iterable[TicketRecord]) -> Iterable[Process]:
        for ticket in tickets:
            if ticket.process is not None and ticket.process.boot_id == self._boot_id:
                yield Process(ticket.process.pid, ticket.process.started_ticks)

    async def _named(self, shown: CardProcess) -> Stranger | None:
        stat = stat_of(shown.pid)
        if stat is None or stat.is_dead:
            return None
        return Stranger(stat.process, await describe(stat.process, self._memories), shown.used_mib)
