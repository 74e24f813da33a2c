"""Who is measured: each can make a body wait for its turn and pass the turn on.

`gpulockd` and its peers are locks. The floors are no locks: the turn passes from each to the next by a bare PUBLISH,
which is the least that a hand-off through Redis can cost.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

import redis
import redis.asyncio

from bench.ground import CROWDED_POOL, POOL, script_words
from gpulockd import gpu_lock
from gpulockd.client.admitting import GuardLink
from gpulockd.ledger import address, verbs
from gpulockd.ledger.keys import PoolKeys

LONG_S = 600

GUARDED = "gpulockd, guarded"
GUARDED_POOL = "bench-guarded"
"""The pool that a real daemon offers and guards."""


class Contender:
    """One way to take turns, in one worker process. `name` is the drain's, `i` the place in its line.

    :param worker: the number of this process; place `i` lives in process `i % workers`
    """

    commands: ClassVar[tuple[str, ...]] = ()
    """The commands that its clients send; INFO counts those that scripts run besides, and these are not among them."""

    def __init__(self, url: str, worker: int, workers: int) -> None:
        self.url = url
        self.worker = worker
        self.workers = workers
        self.messages: Counter[str] = Counter()
        """What was said to a guard since it was last read, by verb."""

    async def open(self) -> None:
        """Connect."""

    async def enter(self, name: str, i: int) -> None:
        """Return when the body may begin."""
        raise NotImplementedError

    async def leave(self, name: str, i: int) -> None:
        """Pass the turn on."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close what would complain otherwise when the loop closes."""


class Ours(Contender):
    """`async with gpu_lock(...)`, as a program uses it."""

    commands = ("fcall",)
    pool = POOL

    async def open(self) -> None:
        self._locks: dict[int, gpu_lock] = {}

    async def enter(self, name: str, i: int) -> None:
        lock = self._locks[i] = gpu_lock("gpu_lock:0", max_wait_time=LONG_S, pool=self.pool)
        await lock.__aenter__()

    async def leave(self, name: str, i: int) -> None:
        await self._locks.pop(i).__aexit__(None, None, None)


class OursCrowded(Ours):
    """The same, while 10,000 tickets wait for another gpu of the pool."""

    pool = CROWDED_POOL


class OursGuarded(Ours):
    """The same in a pool that a daemon guards."""

    pool = GUARDED_POOL

    async def open(self) -> None:
        await super().open()
        say, messages = GuardLink._say, self.messages

        def counted(link: GuardLink, words: dict[str, Any]) -> None:
            messages[words["verb"]] += 1
            say(link, words)

        GuardLink._say = counted  # type: ignore[method-assign, assignment]


class RedisPyLock(Contender):
    """redis-py's asyncio `Lock` with its defaults: it polls every 0.1 s."""

    commands = ("set", "evalsha", "eval")

    async def open(self) -> None:
        # Its default of 100 connections would fail with 250 tasks; one a task never waits.
        self._client = redis.asyncio.Redis.from_url(self.url, max_connections=1000)
        self._locks: dict[int, Any] = {}

    async def enter(self, name: str, i: int) -> None:
        lock = self._locks[i] = self._client.lock(name, timeout=LONG_S)
        await lock.acquire()

    async def leave(self, name: str, i: int) -> None:
        await self._locks.pop(i).release()

    async def aclose(self) -> None:
        await self._client.aclose()


class PythonRedisLock(Contender):
    """python-redis-lock: BLPOP, one thread and one connection a waiter."""

    commands = ("set", "blpop", "evalsha", "eval")

    async def open(self) -> None:
        # redis-py's defaults would cut every BLPOP after 5 s and send it again, and fail with 101 threads.
        self._client = redis.Redis.from_url(self.url, socket_timeout=None, max_connections=1000)
        self._locks: dict[int, Any] = {}

    def enter_blocking(self, name: str, i: int) -> None:
        """Return when the body may begin."""
        import redis_lock

        lock = self._locks[i] = redis_lock.Lock(self._client, name, expire=LONG_S)
        lock.acquire()

    def leave_blocking(self, name: str, i: int) -> None:
        """Pass the turn on."""
        self._locks.pop(i).release()


class Doorbell(Contender):
    """A floor: the one who leaves publishes the next place on the channel of that place's process."""

    commands: ClassVar[tuple[str, ...]] = ("publish",)

    async def open(self) -> None:
        self._turns: dict[str, asyncio.Future[None]] = {}
        await self.connect()

    async def connect(self) -> None:
        """Subscribe to the own channel and give every message to `heard`."""
        raise NotImplementedError

    async def publish(self, channel: str, message: str) -> None:
        """Send one message."""
        raise NotImplementedError

    def heard(self, message: str) -> None:
        """A turn has come to this process."""
        turn = self._turns.pop(message, None)
        if turn is not None and not turn.done():
            turn.set_result(None)

    async def enter(self, name: str, i: int) -> None:
        if i == 0:
            return
        turn = self._turns[f"{name}:{i}"] = asyncio.get_running_loop().create_future()
        await turn

    async def leave(self, name: str, i: int) -> None:
        await self.publish(f"{type(self).__name__}:{(i + 1) % self.workers}", f"{name}:{i + 1}")

    @property
    def channel(self) -> str:
        """The channel of this process."""
        return f"{type(self).__name__}:{self.worker}"


class RawDoorbell(Doorbell):
    """Publish and wake with plain asyncio streams."""

    async def connect(self) -> None:
        path = self.url.removeprefix("unix://")
        ear, mouth = await asyncio.open_unix_connection(path)
        self._reader, self._writer = await asyncio.open_unix_connection(path)
        mouth.write(_words("SUBSCRIBE", self.channel))
        for _ in range(6):  # *3 $9 subscribe $n channel :1
            await ear.readline()
        self._mouth = mouth
        self._listener = asyncio.create_task(self._listen(ear))

    async def _listen(self, ear: asyncio.StreamReader) -> None:
        while True:
            for _ in range(6):  # *3 $7 message $n channel $n
                await ear.readline()
            self.heard((await ear.readline())[:-2].decode())

    async def publish(self, channel: str, message: str) -> None:
        self._writer.write(_words("PUBLISH", channel, message))
        await self._reader.readline()


def _words(*words: str) -> bytes:
    return "".join([f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)]).encode()


class RedisPyDoorbell(Doorbell):
    """Publish and wake with redis-py in its fastest form: one connection, no time limit on the socket."""

    async def connect(self) -> None:
        self._client: Any = address.async_client(self.url, deadline_s=5.0, name="bench")
        self._ear: Any = address.async_client(self.url, deadline_s=5.0, name="bench")
        self._pubsub = self._ear.pubsub()
        await self._pubsub.subscribe(self.channel)
        await self._pubsub.parse_response(block=True)
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            reply = await self._pubsub.parse_response(block=True)
            self.heard(reply[2].decode())

    async def publish(self, channel: str, message: str) -> None:
        await self._client.execute_command("PUBLISH", channel, message)

    async def aclose(self) -> None:
        self._listener.cancel()
        await asyncio.wait((self._listener,))
        await self._pubsub.aclose()
        await self._ear.aclose()
        await self._client.aclose()


class RedisPyDoorbellConfirmed(RedisPyDoorbell):
    """The same, and the one who wakes sends a bare `confirm` of a lease before its body begins."""

    commands = ("publish", "fcall")

    async def connect(self) -> None:
        await super().connect()
        lock = gpu_lock(f"gpu_lock:confirm-{self.worker}", pool=POOL)
        lease = self._lease = await lock.acquire()
        call = verbs.confirm(PoolKeys(POOL), session=lease._entry.session, id=lease.id, token=lease.token)
        self._confirm = ("FCALL", call.script.function, *script_words(call))

    async def enter(self, name: str, i: int) -> None:
        await super().enter(name, i)
        if i > 0:
            answer = await self._client.execute_command(*self._confirm)
            assert answer[0] == b"held", answer

    async def aclose(self) -> None:
        await self._lease.release()
        await super().aclose()


CONTENDERS: dict[str, type[Contender]] = {
    "gpulockd": Ours,
    "gpulockd, 10,000 wait for another gpu": OursCrowded,
    GUARDED: OursGuarded,
    "redis-py Lock": RedisPyLock,
    "python-redis-lock": PythonRedisLock,
    "floor: publish → wake, asyncio streams": RawDoorbell,
    "floor: publish → wake, redis-py": RedisPyDoorbell,
    "floor: redis-py and one confirm": RedisPyDoorbellConfirmed,
}
