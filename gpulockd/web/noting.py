"""Writes into the fleet's audit what somebody has done by hand."""

from __future__ import annotations

from gpulockd.ledger.audit import audit
from gpulockd.web.configuring import author_of
from gpulockd.web.table import Visit


async def note(visit: Visit, what: str, text: str) -> None:
    """Write a line.

    :raises StoreUnavailable: if the store is away; the line may have been written
    """
    origin = "api" if visit.caller.peer is None else "socket"
    await audit(visit.backend.ask, text=text, author=author_of(visit), origin=origin, what=what)
