"""A request that waits for a gpu that its own process holds: perhaps a thread that waits for whoever waits for it.

A thread does not inherit the context of the block that has started it, so nobody can tell it at once that it waits for
its own parent, as a child task is told; threads that merely take turns look the same. So it is said, once.
"""

from __future__ import annotations

import asyncio
import logging

from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.model import Wants

log = logging.getLogger("gpulockd")

SAY_AFTER_S = 10.0
"""How long such a request waits before it is said (in seconds)."""


class OwnHolds:
    """Watches one request while it waits."""

    def __init__(self, session: Session, wants: Wants) -> None:
        self._session = session
        self._wants = wants
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """The request waits; say it after a while."""
        if self._timer is None and not self._session.said_own:
            self._timer = loop.call_later(SAY_AFTER_S, self._look)

    def end(self) -> None:
        """The request waits no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        mine = [entry for entry in self._session.table.held() if _in_the_way(entry, self._wants)]
        if not mine or self._session.said_own:
            return
        self._session.said_own = True
        held = ", ".join(str(gpu) for entry in mine for gpu in entry.gpus)
        log.warning(
            "gpulockd: a request for %s has waited for %g s while this process itself holds %s (%s). If the block that "
            "holds it waits for the thread that asks, neither goes on: ask in one of the two only, or start the thread "
            "with contextvars.copy_context().run (asyncio.to_thread does), and it is told at once. Said once",
            self._wants,
            SAY_AFTER_S,
            held,
            ", ".join(entry.ask.job.task for entry in mine),
        )


def _in_the_way(entry: Entry, wants: Wants) -> bool:
    return not wants.keys or any(gpu.key in wants.keys for gpu in entry.gpus)
