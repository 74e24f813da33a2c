"""The emergency release: an end that Redis did not answer is asked for again, each time on a fresh connection.

Its law: it is the same compare-and-release, with the same id and token, so that a later holder's lease is `stale` to it
and stays. Nothing is ever deleted unasked; what cannot be asked for is the ledger's to end.
"""

from __future__ import annotations

import logging
from typing import Any

from gpulockd.client.keeper import Keeper
from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError
from gpulockd.ledger.store import Store
from gpulockd.ledger.verbs import EndReason

log = logging.getLogger("gpulockd")


def say(entry: Entry, away: GpuLockError) -> None:
    """Say, once for each end, that the first try has failed."""
    log.warning(
        "gpulockd: %s could not be given back (%s); emergency release: the same compare-and-release is repeated on "
        "fresh connections",
        entry,
        away,
    )


async def end_afresh(session: Session, entry: Entry, reason: EndReason) -> Any:
    """Ask once more for the end, on a connection of its own. Returns what the ledger answered.

    :raises StoreUnavailable: if no answer came within the deadline
    """
    store = Store(session.url, deadline_s=session.times.rpc_deadline, name="gpulockd-emergency")
    try:
        return await store.ask(session.end_call(entry, reason))
    finally:
        await store.aclose()


def is_left(session: Session, keeper: Keeper, entry: Entry) -> bool:
    """Whether a lease is left to the ledger now: this process does not believe in its own session any more.

    The session's end in the ledger ends it; if the session goes on after all, an echo names the lease, and it is given
    back as one that nobody here knows. A place in the queue is named by no echo, so its end is asked for on and on.
    """
    if not entry.token or not keeper.gives_back or boottime_s() <= session.believed_until():
        return False
    log.error(
        "gpulockd: %s is left to the guard and the ledger, which end it with session %s: Redis did not answer in time",
        entry,
        entry.session[:8],
    )
    session.table.remove(entry)
    return True
