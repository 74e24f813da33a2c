"""The last step before a body: the guard of this host lets the lease in, or says why not yet.

Where `gpus.require_guard` says so, nobody begins while the pool has no guard: that is a guard that is away.
"""

from __future__ import annotations

import asyncio
import logging

from gpulockd.client.guarded import GuardAway, NotAdmitted, knows_guard
from gpulockd.client.line import Line
from gpulockd.client.table import Entry
from gpulockd.ledger.answers import Answer

log = logging.getLogger("gpulockd")

RETRY_S = 0.2
SAY_AFTER_S = 2.0


async def must_be_let_in(line: Line, answer: Answer) -> bool:
    """Whether a lease that was answered so begins only when a guard lets it in; one that runs is asked in any case.

    The ledger gives up a guard that is cut off from the store, and whom that one has let in believes in it: so the
    pool's last guard is looked for though the ledger knows of none.
    """
    if answer.clock.guarded or line.session.defaults.get("require_guard") is True:
        return True
    return line.guard.is_alive or (knows_guard(line.session) and await line.guard.stands())


class Entering:
    """One ticket's way past the guard."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._deadline: float | None = None
        self._away_since: float | None = None
        self._away = ""
        self._said = False

    async def let_in(
        self, entry: Entry, token: int, gpus: tuple[str, ...], deadline: float, *, guarded: bool = True
    ) -> bool:
        """Wait until the guard lets the lease in; False if it could not be asked or has changed its mind, so that the
        pool is looked at again.

        :param deadline: the end of the wait (seconds of the loop's clock), as it was at the first try
        :param guarded: whether the pool has a guard now
        :raises NotAdmitted: if a later lease has its gpus
        :raises TimeoutError: if the deadline came first; it says what was waited for, if the guard was away
        """
        guard = self._line.guard
        if self._deadline is None:
            self._deadline = deadline
        deadline = self._deadline
        if not guarded:
            await self._pause(GuardAway(_unguarded_text(self._line.session.pool)), deadline)
            return False
        try:
            async with asyncio.timeout_at(deadline):
                if not await self._is_answered(guard.admit(entry, token, gpus), entry):
                    return False
        except GuardAway as away:
            await self._pause(away, deadline)
            return False
        except TimeoutError:
            raise TimeoutError(self._away) from None
        if not guard.has_let_in(entry, token):
            return False
        entry.guard = guard
        self._away_since, self._away = None, ""
        return True

    async def _is_answered(self, answer: asyncio.Future[None], entry: Entry) -> bool:
        """Wait for the guard's yes. False: the grant may be over, since a later one has come or its session has ended;
        who only waited for the one before would not hear that another gpu is free."""

        def wake(_: object) -> None:
            entry.kick()

        answer.add_done_callback(wake)
        try:
            while not answer.done():
                if entry.claim is not None or entry.session != self._line.session.id:
                    return False
                entry.signal = self._line.loop.create_future()
                await entry.signal
        finally:
            answer.remove_done_callback(wake)
        answer.result()
        return True

    async def _pause(self, away: GuardAway, deadline: float) -> None:
        """A guard that does not answer is waited for: nobody goes round it."""
        now = self._line.loop.time()
        self._away = away.message
        if self._away_since is None:
            self._away_since = now
        if not self._said and now - self._away_since >= SAY_AFTER_S:
            self._said = True
            log.warning("gpulockd: %s; waiting for it", away.message)
        if now >= deadline:
            raise TimeoutError(away.message)
        await asyncio.sleep(min(RETRY_S, deadline - now))


def _unguarded_text(pool: str) -> str:
    return (
        f"pool {pool} has no guard now, and gpus.require_guard lets nobody begin without one: start `gpulockd serve` "
        "on the host of its GPUs, or set gpus.require_guard to false there"
    )


__all__ = ["Entering", "NotAdmitted", "must_be_let_in"]
