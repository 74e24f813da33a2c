"""Which processes are the run of a lease, decided from a table of processes alone: no look at the system, no clock.

A run is the holder and its descendants; children of a dead member stay members. A process that a card shows counts
if it descends from the run, or was started with this lease in its environment. A cgroup counts only if `gpulockd run`
made it for this run: any other is a whole container or a whole login.

What this cannot see: a child that was born and lost its parent between two scans is nobody's descendant any more. On
a card it is still found, by `GPULOCKD_LEASE` in its environment; elsewhere it is not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.processes.table import Table

Children = dict[int, list[Process]]
"""The living children of each pid."""


def run_of(
    holders: Collection[Process],
    table: Table,
    known: Collection[Process] = (),
    *,
    lease_ids: Collection[str] = (),
    card_pids: Collection[int] = (),
    tags: Mapping[Process, str] | None = None,
    cgroup_pids: Collection[int] = (),
    spared: Collection[Process] = (),
    since_ticks: int = 0,
    children: Children | None = None,
) -> frozenset[Process]:
    """Return the living members of a run.

    :param holders: the process that holds the lease, and those that joined it
    :param known: what earlier scans found; children of a dead member are members through this alone
    :param lease_ids: the lease, as `GPULOCKD_LEASE` may name it
    :param card_pids: the pids that the lease's own cards show
    :param tags: the `GPULOCKD_LEASE` of each of those
    :param cgroup_pids: what is in the cgroup that `gpulockd run` made for this very run
    :param spared: processes that, with their descendants, are of no run: the daemon and its store
    :param since_ticks: a descendant that is older is not of the run, nor are its children
    :param children: `children_of` the table, for who asks for many runs
    """
    children = children_of(table) if children is None else children
    outside = _with_descendants(_living(spared, table), children, frozenset())
    tags = tags or {}
    found = set(_living([*holders, *known], table))
    found |= {stat.process for pid in cgroup_pids if (stat := table.get(pid)) is not None and not stat.is_dead}
    for pid in card_pids:
        stat = table.get(pid)
        if stat is not None and not stat.is_dead and tags.get(stat.process) in lease_ids:
            found.add(stat.process)
    older = {stat.process for stat in table.values() if stat.started_ticks < since_ticks} if since_ticks else set()
    return _with_descendants(found - outside, children, outside | older)


def children_of(table: Table) -> Children:
    """Return the living children of each pid."""
    children: Children = {}
    for stat in table.values():
        if not stat.is_dead:
            children.setdefault(stat.parent, []).append(stat.process)
    return children


def strangers_on(card_pids: Collection[int], run: Collection[Process], table: Table) -> frozenset[Process]:
    """Return the living processes that a card shows and that are not of this run."""
    seen = {stat.process for pid in card_pids if (stat := table.get(pid)) is not None and not stat.is_dead}
    return frozenset(seen.difference(run))


def _living(processes: Collection[Process], table: Table) -> set[Process]:
    return {
        process
        for process in processes
        if (stat := table.get(process.pid)) is not None and stat.process == process and not stat.is_dead
    }


def _with_descendants(
    roots: Collection[Process], children: Children, outside: Collection[Process]
) -> frozenset[Process]:
    found, queue = set(roots), list(roots)
    while queue:
        parent = queue.pop()
        for child in children.get(parent.pid, ()):
            # A child that is older than its parent belonged to an earlier process of that pid.
            if child.started_ticks >= parent.started_ticks and child not in found and child not in outside:
                found.add(child)
                queue.append(child)
    return frozenset(found)
