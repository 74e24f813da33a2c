"""The last step before a body in a guarded pool: the guard of this host lets the lease in, or says why not yet."""

from __future__ import annotations

import asyncio
import logging

from gpulockd.client.guarded import GuardAway, NotAdmitted
from gpulockd.client.line import Line
from gpulockd.client.table import Entry

log = logging.getLogger("gpulockd")

RETRY_S = 0.2
SAY_AFTER_S = 2.0


class Entering:
    """One ticket's way past the guard."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._away_since: float | None = None
        self._said = False

    async def let_in(self, entry: Entry, token: int, gpus: tuple[str, ...], deadline: float) -> bool:
        """Wait until the guard lets the lease in; False if it could not be asked, so that the pool is looked at again.

        :param deadline: the end of the wait (seconds of the loop's clock)
        :raises NotAdmitted: if a later lease has its gpus
        :raises TimeoutError: if the deadline came first
        """
        guard = self._line.guard
        try:
            async with asyncio.timeout_at(deadline):
                await guard.admit(entry, token, gpus)
        except GuardAway as away:
            await self._pause(away, deadline)
            return False
        entry.guard = guard
        self._away_since = None
        return True

    async def _pause(self, away: GuardAway, deadline: float) -> None:
        """A guard that does not answer is waited for: nobody goes round it."""
        loop = self._line.loop
        now = loop.time()
        if self._away_since is None:
            self._away_since = now
        if not self._said and now - self._away_since >= SAY_AFTER_S:
            self._said = True
            log.warning("gpulockd: %s; waiting for it", away.message)
        if now >= deadline:
            raise TimeoutError(away.message)
        await asyncio.sleep(min(RETRY_S, deadline - now))


__all__ = ["Entering", "NotAdmitted"]
