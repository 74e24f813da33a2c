"""The members of every run that is held, kept between scans: their deaths told at once, their children found in time.

A scan costs 20 to 40 µs for each process of the host, a look some 50 µs for each member. A member's death makes neither
due: its children have a new parent by then. So a child that is born and loses its parent between two looks is not
found by descent: see `runs`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from types import TracebackType
from typing import Self

import anyio

from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.processes.table import Memories, Table, read_family, read_table, take_timed
from gpulockd.hardware.processes.watch import Watch
from gpulockd.hardware.runs import children_of, run_of

SCAN_S = 1.0
"""How often held runs are looked through for new children, in seconds."""

LEAST_REST = 20
"""How many times longer than a scan the pause after it is at least, on hosts with very many processes."""

CardPids = Callable[[str], Collection[int]]
"""What the cards of a lease show now, by lease."""


def no_cards(lease: str) -> Collection[int]:
    """For hosts whose cards show no processes."""
    return ()


class Run:
    """One lease's processes: who holds it, which ids name it, and the living members that were found."""

    def __init__(self, lease: str, spared: Collection[Process]) -> None:
        self.lease = lease
        self.lease_ids = {lease}
        self.holders: set[Process] = set()
        self.members: set[Process] = set()
        self.spared = frozenset(spared)
        self.since_ticks = 0

    def __repr__(self) -> str:
        return f"<Run {self.lease} of {len(self.holders)} with {len(self.members)} processes>"


class Runs:
    """All runs of this host. Of one loop; enter it there."""

    def __init__(
        self,
        died: Callable[[str, Process], None] = lambda lease, process: None,
        *,
        spared: Collection[Process] = (),
        memories: Memories | None = None,
        watched: Container[Process] = (),
    ) -> None:
        """:param died: told on the loop of each member's death, once for each run that it was of
        :param spared: processes that with their descendants are of no run: the daemon and its store
        :param watched: processes whose death is told here by `ended`; the others are watched here
        """
        self._told = died
        self._spared = frozenset(spared)
        self._memories = memories or Memories()
        self._watched = watched
        self._runs: dict[str, Run] = {}
        self._watch = Watch(self.ended)
        self._due = anyio.Event()
        self._asked: dict[Process, str] = {}
        self.held = 0
        """How often a holder or a member came by its own word: whom they have started has not been looked for."""

    def __enter__(self) -> Self:
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.__exit__(kind, error, trace)

    def hold(
        self,
        lease: str,
        holder: Process,
        pidfd: int | None = None,
        *,
        lease_id: str | None = None,
        since_ticks: int = 0,
    ) -> None:
        """Follow one more holder of a lease, the first one or one that joined; a scan becomes due.

        :param pidfd: of this very process, ours from now on
        :param lease_id: the name under which a joined process has the lease
        :param since_ticks: only what was born since is of it, not what a shell started before it became the wrapper
        :raises HiddenProcess: if /proc hides it
        :raises OSError: if no descriptor is left
        """
        run = self.adopt(lease, holder, pidfd)
        run.since_ticks = max(run.since_ticks, since_ticks)
        run.lease_ids |= {lease_id} if lease_id else set()
        run.holders.add(holder)
        self._due.set()

    def adopt(self, lease: str, member: Process, pidfd: int | None = None) -> Run:
        """Follow a member that holds nothing itself, one that a daemon before this one wrote down.

        :raises HiddenProcess: if /proc hides it
        :raises OSError: if no descriptor is left
        """
        # Watched first: a member whose death nobody would tell is worse than an error.
        self._watch_over(member, pidfd)
        self.held += 1
        run = self._runs.setdefault(lease, Run(lease, self._spared))
        run.members.add(member)
        return run

    def let_go(self, lease: str, holder: Process) -> None:
        """This holder has left the lease; its descendants that were found stay in the run."""
        run = self._runs.get(lease)
        if run is not None:
            run.holders.discard(holder)
            run.members.discard(holder)
            if not self.leases_of(holder):
                self._watch.discard(holder)

    def drop(self, lease: str) -> None:
        """Follow this run no longer."""
        run = self._runs.pop(lease, None)
        for process in run.members if run else ():
            if not self.leases_of(process):
                self._watch.discard(process)

    def members(self, lease: str) -> frozenset[Process]:
        """The living members of a run as far as they are known."""
        run = self._runs.get(lease)
        return frozenset(run.members) if run else frozenset()

    def leases_of(self, process: Process) -> frozenset[str]:
        """The runs that a process is of."""
        return frozenset(lease for lease, run in self._runs.items() if process in run.members)

    def holds_another(self, lease: str) -> frozenset[Process]:
        """The members of a run that hold another lease themselves, with it lost if they are ended."""
        others = {holder for run in self._runs.values() if run.lease != lease for holder in run.holders}
        return self.members(lease) & others

    def pidfd(self, process: Process) -> int | None:
        """The descriptor of a member, to store; it stays ours."""
        return self._watch.pidfd(process)

    async def scan(self, card_pids: CardPids = no_cards) -> float:
        """Look through all processes for new members of every run; return the CPU time that it took (in seconds).

        :raises TimeoutError: if /proc does not answer
        """
        table, took_s = await take_timed(read_table)
        shown = {lease: tuple(card_pids(lease)) for lease in list(self._runs)}
        self._asked = {}
        self._take(table, shown, await self._tags(table, shown))
        return took_s

    async def look(self, card_pids: CardPids = no_cards, leases: Collection[str] | None = None) -> float:
        """Look for new descendants of the members alone, and at what their cards show, as `scan`, for much less.

        :param leases: only at these runs; None: at all
        :raises TimeoutError: if /proc does not answer
        """
        runs = [run for lease, run in self._runs.items() if leases is None or lease in leases]
        shown = {run.lease: tuple(card_pids(run.lease)) for run in runs}
        pids = {process.pid for run in runs for process in run.members}.union(*shown.values())
        table, took_s = await take_timed(lambda: read_family(pids))
        self._take(table, shown, await self._tags(table, shown))
        return took_s

    async def _tags(self, table: Table, shown: Mapping[str, Collection[int]]) -> Mapping[Process, str]:
        """The lease that processes on cards were started in; who is known already, or was asked since the last scan, is
        not asked."""
        on_cards = {lease: {table[pid].process for pid in pids if pid in table} for lease, pids in shown.items()}
        new = {one for lease, found in on_cards.items() for one in found - self.members(lease)} - self._asked.keys()
        self._asked |= dict.fromkeys(new, "") | await self._memories.leases(new)
        return self._asked

    def _take(self, table: Table, shown: Mapping[str, Collection[int]], tags: Mapping[Process, str]) -> None:
        children = children_of(table)
        for lease, run in [(lease, run) for lease, run in self._runs.items() if lease in shown]:
            found = run_of(
                run.holders,
                table,
                run.members,
                lease_ids=run.lease_ids,
                card_pids=shown.get(lease, ()),
                tags=tags,
                spared=run.spared,
                since_ticks=run.since_ticks,
                children=children,
            )
            # The watch alone says who has died: the table may be older than a member that was found meanwhile.
            for process in found - run.members:
                self._watch_over(process)
                run.members.add(process)

    async def follow(self, card_pids: CardPids = no_cards, interval_s: float = SCAN_S) -> None:
        """Scan when a holder comes, and each `interval_s` seconds while a run is held, until cancelled.

        :raises TimeoutError: if /proc does not answer
        """
        while True:
            self._due = anyio.Event()
            rest_s = 0.0
            if self._runs:
                rest_s = LEAST_REST * await self.scan(card_pids)
                await anyio.sleep(rest_s)
            with anyio.move_on_after(max(0.0, interval_s - rest_s) if self._runs else None):
                await self._due.wait()

    def _watch_over(self, process: Process, pidfd: int | None = None) -> None:
        if pidfd is not None or process not in self._watched:
            self._watch.add(process, pidfd)

    def ended(self, process: Process) -> None:
        """A process has died; of those that are not `watched` the kernel tells it."""
        for run in list(self._runs.values()):
            if process in run.members:
                run.members.discard(process)
                self._told(run.lease, process)

    def __repr__(self) -> str:
        return f"<Runs {len(self._runs)} with {len(self._watch)} processes>"
