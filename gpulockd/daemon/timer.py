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
from gpulockd.ledger.subscription import Subscription
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


async def run(
    url: str,
    keys: PoolKeys,
    ask: Ask,
    *,
    deadline_s: float,
    pulse: Pulse,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run until cancelled.

    :param ask: sends a script
    :param deadline_s: for the store's answers (in seconds)
    :param pulse: beaten after each look, for the watchdog
    """
    task_status.started()
    pause_s = RETRY_S
    away = False
    while True:
        try:
            subscription = await Subscription.open(url, (keys.events_channel,), deadline_s=deadline_s, sharded=False)
            try:
                if away:
                    await ask(verbs.snapshot(keys, length=1))  # where a key is spoilt, one may subscribe all the same
                    _log.info("timer.store_back", message="the store answers again")
                away, pause_s = False, RETRY_S
                await _watch(subscription, keys, ask, pulse)
            finally:
                with anyio.CancelScope(shield=True):
                    await subscription.aclose()
        except StoreUnavailable as trouble:
            if not away:
                _log.warning("timer.store_away", message=trouble.message)
            away = True
            pulse.beat()
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_RETRY_S)


async def _watch(subscription: Subscription, keys: PoolKeys, ask: Ask, pulse: Pulse) -> None:
    """Sleep until something is due, or has happened; then look."""
    looked_at = anyio.current_time() - QUIET_S
    while True:
        due_s = _due_s(await ask(verbs.snapshot(keys, length=1)))
        quiet = anyio.current_time() - looked_at >= QUIET_S
        looked_at = anyio.current_time()
        pulse.beat()
        with anyio.move_on_after(due_s) as until_due:
            await pulse.rest(subscription.next)
        if until_due.cancelled_caught:
            continue
        # One look for all that happens within a moment.
        gather_s = SOON_S if quiet else BUSY_S
        with anyio.move_on_after(min(gather_s, max(0.0, due_s - (anyio.current_time() - looked_at)))):
            while True:
                await subscription.next()


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
