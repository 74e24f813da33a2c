"""A subscription to channels of one pool: one connection that only listens.

It never reconnects by itself, because then what was said meanwhile would be lost in silence. A broken subscription
raises; its owner opens another and then asks for the state, for a message is only a hint.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, Protocol

from gpulockd.ledger import address
from gpulockd.ledger.troubles import mapped
from gpulockd.ledger.wire import cluster, opening, slots
from gpulockd.ledger.wire.by_redis_py import RedisPyEar
from gpulockd.ledger.wire.connection import Wire
from gpulockd.ledger.wire.trouble import Broken, Late, Moved, Refused

NAME = "gpulockd-subscription"


class Ear(Protocol):
    """What a subscription needs of a transport."""

    async def subscribe(self, channels: tuple[str, ...], *, sharded: bool) -> None:
        """Return once the server has confirmed every channel."""

    async def next(self) -> bytes:
        """The next message. Waits for ever; cancelling loses none."""

    async def hear(self, take: Callable[[bytes], None]) -> NoReturn:
        """Give every message to `take` until the connection breaks."""

    def rest(self, seconds: float) -> None:
        """Read nothing for so long, if that can be."""

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""

    async def aclose(self) -> None:
        """Close the connection; never raises for a server that is away."""


class WireEar:
    """A subscription over an own connection. What it hears before anybody listens is kept."""

    def __init__(self, url: str, *, deadline_s: float, name: str) -> None:
        self._url = url
        self._deadline_s = deadline_s
        self._name = name
        self._wire = Wire(deadline_s, self._hear, self._news)
        self._heard: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], None] | None = None

    async def subscribe(self, channels: tuple[str, ...], *, sharded: bool) -> None:
        """Return once the server has confirmed every channel. One server knows no shards."""
        verb = "SUBSCRIBE"
        if not address.is_cluster(self._url):
            return await self._at(self._url, verb, channels)
        # Every server of a cluster hears what is published, but the one that has the keys does so first.
        known, slot = slots.of_cluster(self._url), slots.slot_of(channels[0].encode())
        node = await cluster.owner_of(self._url, slot, self._deadline_s)
        try:
            await self._at(address.url_of_node(self._url, *node), "SSUBSCRIBE" if sharded else verb, channels)
        except BaseException:
            known.doubt(node)
            raise

    async def _at(self, url: str, verb: str, channels: tuple[str, ...]) -> None:
        wire = self._wire
        await opening.dial(wire, opening.place_of(url), self._name)
        try:
            await asyncio.gather(*(wire.send((verb, channel)) for channel in channels))
        except Refused as refused:
            if refused.code != "MOVED":
                raise
            raise Moved(f"another server of the cluster has its keys now ({refused})") from None

    async def next(self) -> bytes:
        """The next message. Waits for ever; cancelling loses none.

        :raises Broken: if the connection broke
        """
        while not self._heard:
            if self._wire.why is not None:
                raise Broken(*self._wire.why.args)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._heard.popleft()

    async def hear(self, take: Callable[[bytes], None]) -> NoReturn:
        """Give every message to `take` in the moment in which it is read, also after a cancellation of this.

        :raises Broken: when the connection breaks
        """
        while self._heard:
            take(self._heard.popleft())
        self._take = take
        await self.next()
        raise AssertionError("a message passed by who takes them")

    def rest(self, seconds: float) -> None:
        """Read nothing for so long (in seconds)."""
        self._wire.rest(seconds)

    def _hear(self, message: bytes) -> None:
        if self._take is not None:
            self._take(message)
            return
        self._heard.append(message)
        self._news()

    def _news(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def descriptors(self) -> list[int]:
        """The descriptor of its socket."""
        return self._wire.descriptors()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._wire.aclose()


class Subscription:
    """A listening connection. Open it with `open`, hear with `next` or `hear`, end it with `aclose`."""

    def __init__(self, ear: Ear, url: str) -> None:
        self._ear = ear
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
        kind = WireEar if address.is_one_server(url) or address.is_cluster(url) else RedisPyEar
        ear: Ear = kind(url, deadline_s=deadline_s, name=NAME)
        try:
            with mapped(url):
                await _in_time(ear.subscribe(channels, sharded=sharded), deadline_s)
        except BaseException:
            await ear.aclose()
            raise
        return cls(ear, url)

    async def next(self) -> bytes:
        """The next message. Waits for ever; cancelling loses none.

        :raises StoreUnavailable: if the connection broke
        """
        with mapped(self.url):
            return await self._ear.next()

    async def hear(self, take: Callable[[bytes], None]) -> NoReturn:
        """Give every message to `take` as soon as it is read. Runs until the connection breaks; cancelling loses none.

        :param take: must not raise
        :raises StoreUnavailable: if the connection broke
        """
        with mapped(self.url):
            await self._ear.hear(take)

    def rest(self, seconds: float) -> None:
        """Read nothing for so long (in seconds); what comes meanwhile is not lost. A Sentinel's reads on."""
        self._ear.rest(seconds)

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        return self._ear.descriptors()

    async def aclose(self) -> None:
        """Close the connection; never raises for a server that is away."""
        await self._ear.aclose()


async def _in_time(subscribing: Coroutine[Any, Any, None], deadline_s: float) -> None:
    try:
        async with asyncio.timeout(deadline_s):
            await subscribing
    except TimeoutError:
        raise Late("did not confirm a subscription in time") from None
