"""Belief, watched by the loop that holds: the keepalive thread may hang in a reply that trickles in."""

from __future__ import annotations

import asyncio

from gpulockd.client.session import Session
from gpulockd.clock import boottime_s

SHORTEST_S = 0.05


class BeliefWatch:
    """Loses what one loop holds as soon as no answer proves it any more. Runs only while something is held."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Watch from now on; call it in the loop, when something is held."""
        if self._timer is None:
            pause_s = max(SHORTEST_S, self._session.believed_until() - boottime_s())
            self._timer = self._loop.call_later(pause_s, self._look)

    def end(self) -> None:
        """Watch no more: the loop closes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        held = [entry for entry in self._session.table.held() if entry.loop is self._loop]
        if held and boottime_s() > self._session.believed_until():
            for entry in held:
                if not entry.vouched:
                    entry.lose("cut off from Redis: no answer in time")
        if any(not entry.lost.is_set() for entry in held):
            self.begin()
