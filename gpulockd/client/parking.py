"""Waiting in turns: who may not block for long stays in the queue for a moment, leaves, and comes back to its place.

The place is the ledger's record of a ticket that has left, not the word of who comes back. While nobody is there
nothing is granted.
"""

from __future__ import annotations

from collections.abc import Callable

from gpulockd.client.line import Line
from gpulockd.client.table import Ask
from gpulockd.client.waiting import Patience, Waiting
from gpulockd.client.wishes import Turn
from gpulockd.errors import GpuLockError
from gpulockd.ledger import answers as a
from gpulockd.units import format_duration

PASSING_S = 0.5
"""How long to stay in the queue behind others (in seconds): a hand-off may come at once, and the slot is wanted."""

GUARD_WITHIN_S = 600.0
"""How long to wait for the one before to leave the card, once granted (in seconds): the place is used up by then."""


class Parked(GpuLockError):
    """The turn has not come: ask again soon, and name `ticket` to keep the place."""

    ticket: str = ""
    place: int | None = None
    queued: int | None = None
    waited_s: float = 0.0


class Parking(Waiting):
    """A wait that raises `Parked` when the stay is over, and `GpuLockTimeout` when all stays together are too long."""

    def __init__(
        self,
        line: Line,
        ask: Ask,
        patience: Patience,
        turn: Turn,
        *,
        renewed: Callable[[], Patience] | None = None,
    ) -> None:
        self._turn = turn
        super().__init__(line, ask, patience, renewed=renewed)

    @property
    def waited_s(self) -> float:
        """How long this request has waited, all stays and the time between them (in seconds)."""
        return self._turn.waited_s + super().waited_s

    def _go_by(self, patience: Patience) -> None:
        super()._go_by(patience)
        left_s = max(0.0, patience.max_wait_s - self._turn.waited_s)
        self._deadline = self._started_at + min(self._turn.stay_s, left_s)

    async def _wait(self, answer: a.Waiting) -> bool:
        if answer.place > 1 and not answer.frozen_ms:
            self._deadline = min(self._deadline, self._started_at + PASSING_S)
        return await super()._wait(answer)

    async def _let_in(self, token: int, answer: a.Granted | a.Joined) -> bool:
        self._deadline = max(self._deadline, self.line.loop.time() + GUARD_WITHIN_S)
        return await super()._let_in(token, answer)

    async def _give_up(self, why: str = "") -> GpuLockError:
        if why or self.waited_s >= self.patience.max_wait_s:
            return await super()._give_up(why)
        entry = self.entry
        await self.line.end(entry, "parked")
        where = f"place {self.place} of {self.queued}" if self.place else "no place yet"
        waited = format_duration(self.waited_s)
        text = f"{self.ask.wants} not free yet: {where}, waited {waited}; come back to this place soon"
        return Parked(text, ticket=entry.id, place=self.place, queued=self.queued, waited_s=self.waited_s)
