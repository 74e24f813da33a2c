"""A subscription to channels of one pool: one connection that only listens.

It never reconnects by itself, because redis-py would do so in silence and lose what was said meanwhile. A broken
subscription raises; its owner opens another and then asks for the state, for a message is only a hint.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from redis import exceptions as broken
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gpulockd.errors import StoreUnavailable
from gpulockd.ledger import address
from gpulockd.ledger.store import mapped


class Subscription:
    """A listening connection. Open it with `open`, hear with `next`, end it with `aclose`."""

    def __init__(self, client: Any, pubsub: Any, owner: Any, url: str) -> None:
        self._client = client
        self._pubsub = pubsub
        self._owner = owner
        self.url = url

    @classmethod
    async def open(
        cls, url: str, channels: tuple[str, ...], *, deadline_s: float, sharded: bool = True
    ) -> Subscription:
        """Subscribe, and return once the server has confirmed every channel.

        :param channels: on a cluster all in one slot
        :param sharded: whether they are rung by SPUBLISH where the store is a cluster
        :raises StoreUnavailable: if that took longer than `deadline_s`
        """
        owner = address.async_client(url, deadline_s=deadline_s, name="gpulockd-subscription")
        client: Any = owner
        self: Subscription | None = None
        try:
            with mapped(url):
                async with asyncio.timeout(deadline_s):
                    cluster = isinstance(owner, RedisCluster)
                    if isinstance(owner, RedisCluster):
                        await owner.initialize()
                        node = owner.get_node_from_key(channels[0])
                        assert node is not None
                        client = redis.asyncio.Redis(
                            host=str(node.host),
                            port=int(node.port),
                            retry=Retry(NoBackoff(), 0),
                        )
                    pubsub = client.pubsub()
                    self = cls(client, pubsub, owner, url)
                    if cluster and sharded:
                        await pubsub.ssubscribe(*channels)
                    else:
                        await pubsub.subscribe(*channels)
                    # Errors of this connection are ours to handle: redis-py must not reconnect by itself.
                    pubsub.connection.retry.update_supported_errors(())
                    pubsub.connection.retry._supported_errors = ()
                    for _ in channels:
                        await pubsub.parse_response(block=True)
        except TimeoutError as late:
            await (self.aclose() if self else owner.aclose())
            if isinstance(late, StoreUnavailable):
                raise
            raise StoreUnavailable(f"Redis at {address.without_secret(url)} did not confirm a subscription") from None
        except BaseException:
            await (self.aclose() if self else owner.aclose())
            raise
        return self

    async def next(self) -> bytes:
        """The next message. Waits for ever; cancelling loses none.

        :raises StoreUnavailable: if the connection broke
        """
        while True:
            with mapped(self.url):
                reply = await self._pubsub.parse_response(block=True)
            if reply and reply[0] in (b"message", b"smessage", "message", "smessage"):
                message: bytes = reply[2]
                return message

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        own = address.connection_descriptor(self._pubsub.connection)
        return [*own, *address.descriptors(self._client), *address.descriptors(self._owner)]

    async def aclose(self) -> None:
        """Close the connection; never raises for a server that is away."""
        try:
            await self._pubsub.aclose()
            await self._client.aclose()
            if self._owner is not self._client:
                await self._owner.aclose()
        except (broken.RedisError, OSError):
            return
