"""Commands and messages through redis-py: for Sentinel and Cluster, whose topology it knows.

redis-py must not reconnect a subscription by itself: it would do so in silence and lose what was said meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import redis.asyncio
from redis import exceptions as broken
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gpulockd.ledger import address
from gpulockd.ledger.wire.connection import MESSAGES
from gpulockd.ledger.wire.trouble import Late


class RedisPyCommands:
    """Commands to whichever server is the right one."""

    def __init__(self, url: str, *, deadline_s: float, name: str) -> None:
        """:param deadline_s: of each command (in seconds)"""
        self._client: Any = address.async_client(url, deadline_s=deadline_s, name=name)
        self._deadline_s = deadline_s
        self._cluster = address.is_cluster(url)

    def begin(self, words: tuple[Any, ...]) -> asyncio.Future[Any] | None:
        """None: which server it goes to takes more than a write."""
        return None

    async def run(self, words: tuple[Any, ...]) -> Any:
        """Send a command and return its reply.

        :raises Late: if none came within the deadline
        """
        return await self._in_time(self._client.execute_command(*words))

    async def load(self, library: str) -> None:
        """Give the server a library of functions."""
        await self.run(("FUNCTION LOAD", "REPLACE", library))

    async def info(self, section: str) -> dict[str, Any]:
        """What one of the servers says of itself."""
        one = {"target_nodes": "random"} if self._cluster else {}
        reply: dict[str, Any] = await self._in_time(self._client.info(section, **one))
        return reply

    async def _in_time(self, reply: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await reply
        except TimeoutError:
            raise Late(f"gave no answer within {self._deadline_s:g} s") from None

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        return address.descriptors(self._client)

    async def aclose(self) -> None:
        """Close the connections; never raises for a server that is away."""
        try:
            await self._client.aclose()
        except (broken.RedisError, OSError):
            return


class RedisPyEar:
    """A subscription through redis-py."""

    def __init__(self, url: str, *, deadline_s: float, name: str) -> None:
        self._owner: Any = address.async_client(url, deadline_s=deadline_s, name=name)
        self._client: Any = self._owner
        self._pubsub: Any = None

    async def subscribe(self, channels: tuple[str, ...], *, sharded: bool) -> None:
        """Return once the server has confirmed every channel."""
        cluster = isinstance(self._owner, RedisCluster)
        if cluster:
            await self._owner.initialize()
            node = self._owner.get_node_from_key(channels[0])
            assert node is not None
            self._client = redis.asyncio.Redis(host=str(node.host), port=int(node.port), retry=Retry(NoBackoff(), 0))
        pubsub = self._pubsub = self._client.pubsub()
        if cluster and sharded:
            await pubsub.ssubscribe(*channels)
        else:
            await pubsub.subscribe(*channels)
        # Errors of this connection are ours to handle: redis-py must not reconnect by itself.
        pubsub.connection.retry.update_supported_errors(())
        pubsub.connection.retry._supported_errors = ()
        for _ in channels:
            await pubsub.parse_response(block=True)

    async def next(self) -> bytes:
        """The next message. Waits for ever; cancelling loses none."""
        while True:
            reply = await self._pubsub.parse_response(block=True)
            if reply and reply[0] in (*MESSAGES, "message", "smessage"):
                message: bytes = reply[2]
                return message

    def rest(self, seconds: float) -> None:
        """It goes on reading: redis-py cannot rest."""

    async def hear(self, take: Callable[[bytes], None]) -> NoReturn:
        """Give every message to `take` until the connection breaks."""
        while True:
            take(await self.next())

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        own = address.connection_descriptor(self._pubsub.connection) if self._pubsub is not None else []
        return [*own, *address.descriptors(self._client), *address.descriptors(self._owner)]

    async def aclose(self) -> None:
        """Close the connections; never raises for a server that is away."""
        try:
            if self._pubsub is not None:
                await self._pubsub.aclose()
            await self._client.aclose()
            if self._owner is not self._client:
                await self._owner.aclose()
        except (broken.RedisError, OSError):
            return
