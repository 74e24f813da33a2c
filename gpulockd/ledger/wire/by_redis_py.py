"""Commands and messages through redis-py: for a Sentinel, which it asks for the master.

redis-py must not reconnect a subscription by itself: it would do so in silence and lose what was said meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from redis import exceptions as broken

from gpulockd.ledger import address
from gpulockd.ledger.wire.connection import MESSAGES
from gpulockd.ledger.wire.trouble import Late


class RedisPyCommands:
    """Commands to whichever server is the right one."""

    def __init__(self, url: str, *, deadline_s: float, name: str) -> None:
        """:param deadline_s: of each command (in seconds)"""
        self._client: Any = address.async_client(url, deadline_s=deadline_s, name=name)
        self._deadline_s = deadline_s

    def begin(self, words: tuple[Any, ...]) -> asyncio.Future[Any] | None:
        """None: which server it goes to takes more than a write."""
        return None

    async def run(self, words: tuple[Any, ...]) -> Any:
        """Send a command and return its reply.

        :raises Late: if none came within the deadline
        """
        return await self._in_time(self._client.execute_command(*words))

    async def load(self, library: str, words: tuple[Any, ...]) -> None:
        """Give the server a library of functions."""
        await self.run(("FUNCTION LOAD", "REPLACE", library))

    async def info(self, section: str) -> dict[str, Any]:
        """What the master says of itself."""
        reply: dict[str, Any] = await self._in_time(self._client.info(section))
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
        self._client: Any = address.async_client(url, deadline_s=deadline_s, name=name)
        self._pubsub: Any = None

    async def subscribe(self, channels: tuple[str, ...], *, sharded: bool) -> None:
        """Return once the server has confirmed every channel. One master knows no shards."""
        pubsub = self._pubsub = self._client.pubsub()
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
            if reply and reply[0] in (*MESSAGES, "message"):
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
        return [*own, *address.descriptors(self._client)]

    async def aclose(self) -> None:
        """Close the connections; never raises for a server that is away."""
        try:
            if self._pubsub is not None:
                await self._pubsub.aclose()
            await self._client.aclose()
        except (broken.RedisError, OSError):
            return
