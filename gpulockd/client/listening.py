"""How a line hears its doorbell: a subscription to the session's channel, opened again when it breaks.

While it stands nobody polls. When it breaks, waiters poll with backoff until it is back; both is said.
"""

from __future__ import annotations

import asyncio
import logging

from gpulockd.client.doorbell import Doorbell
from gpulockd.client.keeper import Keeper
from gpulockd.client.session import Session
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger.subscription import Subscription

log = logging.getLogger("gpulockd")

RETRY_S = 0.05
MOST_RETRY_S = 1.0


class Listening:
    """One loop's subscription to its session's channel and to what the pool publishes."""

    def __init__(self, session: Session, keeper: Keeper, doorbell: Doorbell) -> None:
        """:param doorbell: takes the messages"""
        self.stands = False
        self._session = session
        self._keeper = keeper
        self._doorbell = doorbell
        self._loop = asyncio.get_running_loop()
        self._as = ""
        self._subscription: Subscription | None = None

    def __repr__(self) -> str:
        return f"<Listening {'stands' if self.stands else 'broken'}>"

    @property
    def is_current(self) -> bool:
        """Whether it is the present session's channel that is heard, or polled for."""
        return self._as == self._session.id

    async def subscribe(self) -> None:
        """Hear the present session's channel.

        :raises GpuLockError: if the store does not take the subscription
        """
        old, id = self._subscription, self._session.id
        keys = self._session.keys
        channels = (keys.session_channel(id), keys.config_channel)
        self._subscription = await Subscription.open(
            self._session.url, channels, deadline_s=self._session.times.rpc_deadline
        )
        self._as = id
        self._doorbell.heard_at = self._loop.time()
        self.stands = True
        if old is not None:
            await old.aclose()

    async def subscribe_or_poll(self) -> None:
        """A store that answers commands, and takes no subscription, is polled until it does."""
        try:
            await self.subscribe()
        except GpuLockError as refused:
            log.warning("gpulockd: no notifications from Redis, waiters poll until they come: %s", refused)
            self._as = self._session.id

    async def run(self) -> None:
        """Hear the doorbell until cancelled; open it again when it breaks."""
        pause_s = RETRY_S
        while True:
            try:
                if not self.stands:
                    await self.subscribe()
                    log.info("gpulockd: notifications from Redis are back; polling ends")
                    self._doorbell.kick_all()
                    self._keeper.wake()  # what the pool has published meanwhile
                await self._hear()
                pause_s = RETRY_S
            except GpuLockError as broken:
                if self.stands:
                    log.warning(
                        "gpulockd: notifications from Redis are lost, waiters poll until they are back: %s", broken
                    )
                    self._doorbell.kick_all()
                self.stands = False
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)

    async def _hear(self) -> None:
        """Hear messages. Raises `StoreUnavailable` when the connection breaks, or no echo came for two keepalives."""
        while True:
            subscription = self._subscription
            assert subscription is not None
            silence_s = 2 * self._session.keepalive_s + self._session.times.rpc_deadline
            try:
                async with asyncio.timeout_at(self._doorbell.heard_at + silence_s):
                    await subscription.hear(self._doorbell.take)
            except StoreUnavailable:
                if subscription is not self._subscription:
                    continue
                raise
            except TimeoutError:
                if self._loop.time() >= self._doorbell.heard_at + silence_s:
                    raise StoreUnavailable(f"no echo for {silence_s:g} s") from None

    async def aclose(self) -> None:
        """Hear nothing any more."""
        self._as = ""
        if self._subscription is not None:
            await self._subscription.aclose()
            self._subscription = None

    def descriptors(self) -> list[int]:
        """Its open sockets."""
        return self._subscription.descriptors() if self._subscription is not None else []
