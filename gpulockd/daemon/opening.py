"""Opens the guard of a pool: its record is read, and those who are in it are watched again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from gpulockd.client.whoami import boot_id
from gpulockd.daemon.fence import Fence
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.holders import follow
from gpulockd.daemon.journal import Journal
from gpulockd.daemon.kept import Kept
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.identity import Process, identify
from gpulockd.hardware.processes.watch import Watch

_log = structlog.get_logger(__name__)


@contextmanager
def open_guard(state: str, pool: str, kept: Kept, store_pid: int = 0) -> Iterator[Guard]:
    """The guard of `pool`, with all that its record in the folder `state` says of this boot.

    :param kept: the pidfds of those inside, which outlive a crash
    :param store_pid: a store that the daemon before has left, which is no child of this one; 0 if there is none
    :raises RecordUnwritable: if the record cannot be written
    """
    journal = Journal(os.path.join(state, f"guard-{pool}.log"), boot_id())
    fence, found = journal.load()
    own = [identify(pid) for pid in (os.getpid(), store_pid) if pid > 1]
    spared = [process for process in own if process is not None]
    guard: Guard | None = None

    def died(process: Process) -> None:
        runs.ended(process)
        if guard is not None:
            guard.died(process)

    def changed_run(lease: str, process: Process) -> None:
        if guard is not None:
            guard.changed()

    watch = Watch(died)
    runs = Runs(changed_run, spared=spared, watched=watch)  # who holds has a session, so its death is told to the guard
    with watch, runs:
        guard = Guard(fence, journal, runs, watch)
        # A fresh record has never been compared with the ledger: somebody may be in without it.
        guard.doubtful = found != "complete"
        guard.is_first = found == "fresh"
        for process in guard.processes_inside():
            pidfd = kept.claim(process)
            if pidfd is not None:
                watch.add(process, pidfd)
        kept.close()
        guard.kept = kept
        _watch_again(guard, fence)
        if fence.leases:
            _log.info("guard.record_read", leases=len(fence.leases), message=f"{fence} of before")
        try:
            yield guard
        finally:
            journal.close()


def _watch_again(guard: Guard, fence: Fence) -> None:
    for lease in fence.leases.values():
        for party in lease.inside:
            guard.callers.own(party)
        for party in lease.parties:
            follow(guard.runs, lease, party)
        for pid, started in lease.members:
            guard.runs.adopt(lease.id, Process(pid, started))
