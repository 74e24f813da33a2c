"""What the ledger says of a lease, as the fence takes it."""

from __future__ import annotations

from gpulockd.daemon.fence import Lease, Party
from gpulockd.daemon.hostpids import is_of_host
from gpulockd.model import TicketRecord


def party_of(ticket: TicketRecord) -> Party:
    """The party that the ledger names for a lease; its process is what the client has said of itself, alive or dead,
    and none where its numbers may mean another process here."""
    process = ticket.process if ticket.process is not None and is_of_host(ticket.process) else None
    return Party(
        ticket=ticket.id,
        session=ticket.session,
        pid=process.pid if process else 0,
        started=process.started_ticks if process else 0,
    )


def is_exclusive(ticket: TicketRecord) -> bool:
    """Whether its gpus are its alone."""
    return ticket.wants.split(":", 1)[0] == "exclusive"


def is_grant_of(ticket: TicketRecord, lease: Lease) -> bool:
    """Whether the ledger has granted this lease; of one that stands on its process's word also: to that session."""
    return ticket.token == lease.token and not ticket.of and (not lease.fresh or ticket.session == lease.holder.session)


def lease_of(ticket: TicketRecord, members: list[Party]) -> Lease:
    """The lease that the ledger names, with those who have joined it."""
    return Lease(
        id=ticket.id,
        token=ticket.token,
        gpus=ticket.gpus,
        exclusive=is_exclusive(ticket),
        parties=[party_of(ticket), *members],
    )
