"""Tells that the fleet's configuration or its rollout may have changed. News is a hint; the state decides."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.abc
import structlog

from gpulockd.errors import StoreUnavailable
from gpulockd.ledger.keys import FLEET_CHANNEL
from gpulockd.ledger.subscription import Subscription

RETRY_S = 0.2
MOST_RETRY_S = 5.0
BROKEN = "broken"
"""Told instead of a word after the subscription was away: anything may have been missed."""

_log = structlog.get_logger(__name__)


class FleetNews:
    """The words of the fleet's channel: `revised`, `marked`, `restored`, `rollout`."""

    def __init__(self, url: str, deadline_s: float) -> None:
        """:param deadline_s: for the store's answers (in seconds)"""
        self._url = url
        self._deadline_s = deadline_s
        self._listeners: list[Callable[[str], None]] = []

    def tell(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each word from now on; it must not raise."""
        self._listeners.append(listener)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        task_status.started()
        pause_s = RETRY_S
        while True:
            try:
                subscription = await Subscription.open(self._url, (FLEET_CHANNEL,), deadline_s=self._deadline_s)
                try:
                    pause_s = RETRY_S
                    self._spread(BROKEN)
                    await subscription.hear(self._take)
                finally:
                    with anyio.CancelScope(shield=True):
                        await subscription.aclose()
            except StoreUnavailable as away:
                _log.debug("config.store_away", message=away.message)
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)

    def _take(self, message: bytes) -> None:
        self._spread(message.partition(b" ")[0].decode(errors="replace"))

    def _spread(self, word: str) -> None:
        for listener in self._listeners:
            listener(word)
