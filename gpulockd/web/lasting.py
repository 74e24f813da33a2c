"""Leases that the daemon keeps for a process or for a time: how they are known at the next daemon, and asked for again.

Their sessions have names that only this daemon and the next ones can work out. So a request that is asked again finds
its own place or grant, nobody else's ticket answers to it, and what stands in the ledger is known as kept by a daemon.
"""

from __future__ import annotations

import hmac
from typing import Any

from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.model import Process, TicketRecord
from gpulockd.web.backend import Backend
from gpulockd.web.wanting import check_id

NO_TOKEN = -1


def session_of(secret: str, ticket: str, process: Process) -> str:
    """Return the session of a lease that the daemon keeps: of this ticket, for this process of this user.

    :param secret: the daemon's own, the same after a restart
    """
    words = f"{ticket} {process.pid} {process.started_ticks} {process.boot_id} {process.user}"
    return hmac.new(secret.encode(), words.encode(), "sha256").hexdigest()[:32]


def is_kept(backend: Backend, lease: TicketRecord) -> bool:
    """Whether a daemon of this state folder has asked for a lease, to keep it for a process or for a time."""
    known = {told.id: told.session for told in backend.timed.all()}
    if known.get(lease.id) == lease.session:
        return True
    return lease.process is not None and lease.session == session_of(backend.token, lease.id, lease.process)


async def give_back(backend: Backend, lease: TicketRecord) -> bool:
    """End a lease that nobody here keeps, as its holder would: no process of it is touched. False: it has just ended.

    :raises StoreUnavailable: if the store does not answer
    """
    keys = backend.keys
    call = verbs.end(keys, session="", id=lease.id, token=lease.token, reason="released")
    answer: Any = await backend.ask(call)
    await backend.ask(verbs.end(keys, session="", id=lease.session, token=None, reason="released", what="session"))
    backend.timed.forget(lease.id)
    return isinstance(answer, a.Ended)


async def forbid(backend: Backend, ticket: str) -> None:
    """Let a ticket that nobody has used yet never be granted anything: its request may still be under way.

    :raises ConfigError: if it is none
    :raises StoreUnavailable: if the store does not answer
    """
    check_id(ticket, "ticket")
    # No lease has that token, so whatever is there already stays as it is.
    await backend.ask(verbs.end(backend.keys, session="", id=ticket, token=NO_TOKEN, reason="abandoned"))
