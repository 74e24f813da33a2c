"""Who holds a lease has a run, which is followed from then on."""

from __future__ import annotations

from gpulockd.daemon.fence import Lease, Party
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.identity import Process, ticks_of


def follow(runs: Runs, lease: Lease, party: Party) -> None:
    """Follow the run of one who is in a lease; who is seen through its connection alone has none.

    Who has joined on its own word may have named another's ticket: what carries that is not of this run.
    """
    if party.pid:
        since_ticks = ticks_of(lease.began_ms) if lease.spares_older else 0
        named = None if party.fresh else party.ticket
        runs.hold(lease.id, Process(party.pid, party.started), lease_id=named, since_ticks=since_ticks)
