"""When those who wait may begin, foretold once for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import anyio

from gpulockd.ledger.forecast import NO_ENDS, Ends, Expected, Holds, expected_starts
from gpulockd.model import Snapshot
from gpulockd.web.views import ExpectedView

Recent = Callable[[], Awaitable[Holds]]

FRESH_S = 2.0
NEW_S = 0.3
"""How old a forecast may be (in seconds), and one that does not know of the ticket yet."""

REST = 20
"""How many times longer than the forecast took it is used at least: a long queue must not cost more than 5 %."""


class Forecast:
    """When each ticket of the queue's first page may begin: one forecast serves all who wait."""

    def __init__(self) -> None:
        self._starts: Mapping[str, Expected | None] = {}
        self._made_at_s = float("-inf")
        self._took_s = 0.0

    async def of(
        self, id: str, snapshot: Snapshot, hold_back_s: float, holds_ms: Recent, ends_ms: Ends = NO_ENDS
    ) -> ExpectedView | None:
        """Return when this ticket may begin, None where that cannot be said.

        :param hold_back_s: how long a ticket that does not fit lets later ones pass (in seconds)
        :param holds_ms: reads the recent holds of each task
        :param ends_ms: in how long a lease ends for sure, by its id (ms)
        :raises StoreUnavailable: if the store is away
        """
        age_s = anyio.current_time() - self._made_at_s
        if age_s > max(FRESH_S if id in self._starts else NEW_S, REST * self._took_s):
            holds = await holds_ms()
            began_s = anyio.current_time()
            self._starts = expected_starts(snapshot, holds, hold_back_s=hold_back_s, ends_ms=ends_ms)
            self._made_at_s, age_s = anyio.current_time(), 0.0
            self._took_s = self._made_at_s - began_s
        found = self._starts.get(id)
        if found is None:
            return None
        early_s, middle_s, late_s = (max(0.0, s - age_s) for s in (found.early_s, found.middle_s, found.late_s))
        return ExpectedView(early_s=early_s, middle_s=middle_s, late_s=late_s)
