"""What is due ends on time, also when nobody asks: dead sessions, unconfirmed claims, leases past their end.

Every script first does what is due; this service only sends one when the next deadline has come. It sleeps until then.
A deadline that is nearer than it knew comes with an event of the pool.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import structlog

from gpulockd.daemon.pulse import Pulse
from gpulockd.errors import StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.verbs import Call

SOON_S = 0.02
"""How long to gather events before looking (in seconds), on a quiet pool."""

BUSY_S = 0.25
"""The same on a pool where something happens all the time; a deadline that an event brings is never nearer."""

QUIET_S = 1.0
RETRY_S = 0.2
MOST_RETRY_S = 5.0

Ask = Callable[[Call[a.Pictured | a.NoSession | a.Unopened]], Awaitable[a.Pictured | a.NoSession | a.Unopened]]

_log = structlog.get_logger(__name__)


class Timer:
    """The service; `hear` tells it that something has happened."""

    def __init__(self, ask: Ask, keys: PoolKeys, pulse: Pulse) -> None:
        """:param ask: sends a script
        :param pulse: beaten after each look, for the watchdog
        """
        self._ask = ask
        self._keys = keys
        self._pulse = pulse
        self._news = anyio.Event()
        self._away = False

    def __repr__(self) -> str:
        return f"<Timer {self._keys.pool}>"

    def hear(self, _kind: str) -> None:
        """Something has happened in the pool, or the store may be away."""
        self._news.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        task_status.started()
        pause_s = RETRY_S
        looked_at = anyio.current_time() - QUIET_S
        while True:
            self._news = anyio.Event()
            try:
                due_s = await self._look()
                pause_s = RETRY_S
            except StoreUnavailable as trouble:
                self._say_away(trouble)
                self._pulse.beat()
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)
                continue
            self._pulse.beat()
            quiet = anyio.current_time() - looked_at >= QUIET_S
            looked_at = anyio.current_time()
            with anyio.move_on_after(due_s) as until_due:
                await self._pulse.rest(self._news.wait)
            if not until_due.cancelled_caught:
                # One look for all that happens within a moment.
                gather_s = SOON_S if quiet else BUSY_S
                await anyio.sleep(min(gather_s, max(0.0, due_s - (anyio.current_time() - looked_at))))

    async def _look(self) -> float:
        """Send a script, which ends what is due. Returns how long nothing more is (in seconds).

        :raises StoreUnavailable: if the store does not answer
        """
        due_s = _due_s(await self._ask(verbs.snapshot(self._keys, length=1)))
        if self._away:
            self._away = False
            _log.info("timer.store_back", message="the store answers again")
        return due_s

    def _say_away(self, trouble: StoreUnavailable) -> None:
        if not self._away:
            self._away = True
            _log.warning("timer.store_away", message=trouble.message)


def _due_s(answer: a.Pictured | a.NoSession | a.Unopened) -> float:
    """Return how long nothing is due (in seconds). While the pool is frozen nothing ends."""
    if not isinstance(answer, a.Pictured):
        return MOST_RETRY_S
    snapshot = answer.snapshot
    if snapshot.frozen_ms > 0:
        return snapshot.frozen_ms / 1000 + 0.001
    if snapshot.next_due_ms is None:
        return float("inf")
    # What is still due after a look (more than one script may end) gets the next one soon, never at once.
    return max(SOON_S / 4, snapshot.next_due_ms / 1000 + 0.001)
