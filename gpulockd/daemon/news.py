"""What happens in the pool, told as it happens: one subscription for the whole daemon.

Its law: news is a hint. Whoever hears of a break (`BROKEN`) must look at the state, since anything may have been
missed.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.abc
import structlog

from gpulockd.errors import StoreUnavailable
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.subscription import Subscription

REST_S = 0.02
"""How long what a hand-off tells may wait (in seconds)."""

RETRY_S = 0.2
MOST_RETRY_S = 5.0
BROKEN = "broken"
"""Told instead of a kind of event after the subscription was away."""

AWAY = "away"
"""Told instead of a kind of event when there is no subscription, and at each try that brings none."""

_START = b'{"type":"'

_log = structlog.get_logger(__name__)


class News:
    """The events of one pool, by their kinds."""

    def __init__(self, url: str, keys: PoolKeys, deadline_s: float) -> None:
        """:param deadline_s: for the store's answers (in seconds)"""
        self._url = url
        self._keys = keys
        self._deadline_s = deadline_s
        self._subscription: Subscription | None = None
        self._listeners: list[Callable[[str], None]] = []
        self._readers: list[Callable[[bytes], None]] = []

    def tell(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the kind of each event from now on; it must not raise."""
        self._listeners.append(listener)

    def tell_whole(self, reader: Callable[[bytes], None]) -> None:
        """Call `reader` with each event as it is, before its kind is told; it must not raise."""
        self._readers.append(reader)

    def rest(self) -> None:
        """Hear nothing for a moment: a gpu is being handed on, and who has got it waits for this daemon."""
        if self._subscription is not None:
            self._subscription.rest(REST_S)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled."""
        task_status.started()
        pause_s = RETRY_S
        while True:
            try:
                subscription = self._subscription = await Subscription.open(
                    self._url, (self._keys.events_channel,), deadline_s=self._deadline_s, sharded=False
                )
                try:
                    pause_s = RETRY_S
                    self._spread(BROKEN)
                    await subscription.hear(self._take)
                finally:
                    self._subscription = None
                    with anyio.CancelScope(shield=True):
                        await subscription.aclose()
            except StoreUnavailable as away:
                _log.debug("news.store_away", message=away.message)
                self._spread(AWAY)
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)

    def _take(self, message: bytes) -> None:
        for reader in self._readers:
            reader(message)
        if message.startswith(_START):
            self._spread(message[len(_START) :].partition(b'"')[0].decode(errors="replace"))

    def _spread(self, kind: str) -> None:
        for listener in self._listeners:
            listener(kind)
