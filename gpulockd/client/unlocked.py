"""`GPULOCKD_DISABLE=1`: programs run unlocked, because somebody said so in so many words."""

from __future__ import annotations

import asyncio
import logging

from gpulockd.client.keeper import Keeper
from gpulockd.client.lease import Lease
from gpulockd.client.line import Line
from gpulockd.client.session import Session
from gpulockd.client.table import Ask, Entry
from gpulockd.ledger.verbs import Terms
from gpulockd.model import DEFAULT_KEY, Gpu, Job, Wants
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock

log = logging.getLogger("gpulockd")


class UnlockedLease(Lease):
    """A lease that locks nothing and asks nobody."""

    async def progress(self, percent: float | None = None, message: str = "") -> None:
        """Tell nobody."""

    @property
    def stands(self) -> bool:
        """Always: nobody can take it."""
        return True

    async def _end(self) -> None:
        self._ended = True


def unlocked_lease(wants: Wants, job: Job) -> UnlockedLease:
    """A lease on what was asked for, or on GPU 0, without a lock."""
    log.warning("gpulockd: GPULOCKD_DISABLE=1, running WITHOUT a lock on %s", wants)
    terms = Terms.of(SessionBlock(), QueueBlock(), SettleBlock())
    session = Session("unix:///dev/null", "unlocked", SessionBlock(), terms)
    entry = Entry(Ask(wants, 0, job, 0), session.id, asyncio.get_running_loop())
    keys = wants.keys or (DEFAULT_KEY,)
    gpus = tuple(Gpu(key=key, index=int(key[9:]) if key[9:].isdigit() else None) for key in keys)
    entry.hold(0, gpus, 0.0)
    return UnlockedLease(Line(session, Keeper(session)), entry)
