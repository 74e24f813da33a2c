"""A snapshot with the host's pids, where the daemon knows them."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from gpulockd.model import Process, Snapshot, TicketRecord

HostPid = Callable[[str, Process], int | None]
"""The host's pid of a session's process, None where nobody knows it."""


def with_host_pids(snapshot: Snapshot, host_pid: HostPid) -> Snapshot:
    """Return the snapshot with each process named as the host names it; the others keep the number they gave."""

    def named(ticket: TicketRecord) -> TicketRecord:
        if ticket.process is None:
            return ticket
        pid = host_pid(ticket.session, ticket.process)
        return ticket if pid is None else replace(ticket, process=replace(ticket.process, pid=pid, seen=True))

    leases = tuple(named(lease) for lease in snapshot.leases)
    return replace(snapshot, leases=leases, queue=tuple(named(ticket) for ticket in snapshot.queue))
