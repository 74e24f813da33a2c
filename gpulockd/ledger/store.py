"""The connections to Redis or Valkey, behind two verbs: ask a script, and hear the next message.

Every command has its own deadline and is sent once; whoever asks again does so with the same ids.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from redis import exceptions as broken

from gpulockd.errors import ConfigError
from gpulockd.ledger import address, pools
from gpulockd.ledger.keys import FLEET_HOSTS, FLEET_POOLS
from gpulockd.ledger.loading import check_loaded
from gpulockd.ledger.troubles import mapped, our_error
from gpulockd.ledger.verbs import Call
from gpulockd.ledger.wire.blocking import BlockingCluster
from gpulockd.ledger.wire.by_redis_py import RedisPyCommands
from gpulockd.ledger.wire.cluster import ClusterCommands
from gpulockd.ledger.wire.commands import Commands, WireCommands
from gpulockd.ledger.wire.trouble import Broken, Refused

T = TypeVar("T")

OLDEST_VERSION = (7, 0)
NOT_LOADED = "Function not found"
NEVER_THERE = b"}:never"


def _refuse_unfit(info: dict[str, Any], shown: str) -> None:
    """:raises ConfigError: if the server is too old, or evicts keys"""
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
        raise ConfigError(f"Redis at {shown} is version {version}; gpulockd needs Redis 7.0 or Valkey 7.2 at least")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise ConfigError(
            f"Redis at {shown} evicts keys (maxmemory-policy {policy}); locks need "
            "'CONFIG SET maxmemory-policy noeviction', or an own server"
        )


class Store:
    """One command connection of one event loop."""

    def __init__(self, url: str, *, deadline_s: float, name: str = "gpulockd") -> None:
        """:raises ConfigError: if the URL cannot name a store"""
        self.url = address.check_url(url)
        self.deadline_s = deadline_s
        self.name = name
        self.commands = 0
        self._commands = _commands(url, deadline_s, name)
        self._many = address.is_cluster(url)

    def __repr__(self) -> str:
        return f"<Store {address.without_secret(self.url)} {self.commands} commands>"

    def begin(self, call: Call[Any]) -> asyncio.Future[Any] | None:
        """Send a script now, before anything is awaited; `ask` takes what is returned. None: only `ask` can send it."""
        begun = self._commands.begin((b"FCALL", call.script.function, *script_args(call, self._many)))
        if begun is not None:
            self.commands += 1
        return begun

    async def ask(self, call: Call[T], begun: asyncio.Future[Any] | None = None) -> T:
        """Run a script and return its typed answer.

        :param begun: what `begin` returned for this very call
        :raises StoreUnavailable: if no answer came within the deadline; the script may have run
        """
        begun = begun or self.begin(call)
        if begun is not None:
            try:
                return call.read(await begun)
            except (Refused, Broken) as trouble:
                if NOT_LOADED not in str(trouble):
                    raise our_error(trouble, address.without_secret(self.url)) or trouble from trouble
        words = ("FCALL", call.script.function, *script_args(call, self._many))
        reply = await self._command(*words, library=call.script.text)
        return call.read(reply)

    async def _command(self, *words: Any, library: str = "") -> Any:
        self.commands += 1
        with mapped(self.url):
            try:
                return await self._commands.run(words)
            except (Refused, broken.ResponseError) as missing:
                if not library or NOT_LOADED not in str(missing):
                    raise
            await self._load(library, words)
            return await self._commands.run(words)

    async def _load(self, library: str, words: tuple[Any, ...]) -> None:
        try:
            await self._commands.load(library, words)
        except (Refused, broken.ResponseError) as refused:
            check_loaded(refused, address.without_secret(self.url))

    async def _info(self, section: str) -> dict[str, Any]:
        self.commands += 1
        with mapped(self.url):
            return await self._commands.info(section)

    async def check(self) -> None:
        """:raises ConfigError: if the server is too old, or evicts keys"""
        info = await self._info("server") | await self._info("memory")
        _refuse_unfit(info, address.without_secret(self.url))

    async def knows_pool(self, pool: str) -> bool:
        """Whether the fleet's list names the pool."""
        return bool(await self._command("SISMEMBER", FLEET_POOLS, pool))

    async def pools(self) -> list[str]:
        """The pools on the fleet's list; what cannot be one is passed over."""
        return pools.usable(await self._command("SMEMBERS", FLEET_POOLS))

    async def enlist_pool(self, pool: str) -> None:
        """Put the pool on the fleet's list, once its first session is open."""
        await self._command("SADD", FLEET_POOLS, pool)

    async def pool_of_host(self, boot_id: str) -> str | None:
        """The pool that offers the real cards of this boot, if any does."""
        found = await self._command("HGET", FLEET_HOSTS, boot_id)
        return found.decode("utf-8", "replace") if found else None

    async def enlist_host(self, boot_id: str, pool: str) -> None:
        """Say that the real cards of this boot belong to that pool."""
        await self._command("HSET", FLEET_HOSTS, boot_id, pool)

    async def run_id(self) -> str:
        """The run id of the server that answers."""
        return str((await self._info("server"))["run_id"])

    async def connections(self) -> int:
        """How many connections the server that answers has open, of all its clients."""
        return int((await self._info("clients"))["connected_clients"])

    async def read_events(self, stream: str, after: str, count: int = 256) -> list[bytes]:
        """Events of a pool's stream after an id such as "17-1" or "0", oldest first, as JSON."""
        rows = await self._command("XRANGE", stream, f"({after}", "+", "COUNT", count)
        return [dict(_pairs(fields))[b"e"] for _, fields in rows]

    async def latest_events(self, stream: str, count: int, before: str = "+") -> list[bytes]:
        """The latest events of a pool's stream before an id, newest first, as JSON."""
        rows = await self._command("XREVRANGE", stream, before, "-", "COUNT", count)
        return [dict(_pairs(fields))[b"e"] for _, fields in rows]

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        return self._commands.descriptors()

    async def aclose(self) -> None:
        """Close the connection; never raises for a server that is away."""
        await self._commands.aclose()


def _commands(url: str, deadline_s: float, name: str) -> Commands:
    """Own connections to one server or to a cluster; which one is the master now is redis-py's to ask a Sentinel."""
    if address.is_cluster(url):
        return ClusterCommands(url, deadline_s=deadline_s, name=name)
    kind = WireCommands if address.is_one_server(url) else RedisPyCommands
    return kind(url, deadline_s=deadline_s, name=name)


def _pairs(fields: Any) -> list[tuple[bytes, bytes]]:
    if isinstance(fields, dict):
        return list(fields.items())
    return list(zip(fields[::2], fields[1::2], strict=True))


def script_args(call: Call[Any], cluster: bool) -> tuple[Any, ...]:
    """The words of a call after its function's name.

    A cluster is told of one more key, which is never there. While a slot is being moved it refuses what names several
    keys of which one is missing, so no script ever runs where only some of the pool's keys are.
    """
    keys = call.keys.wire
    if cluster:
        keys = (*keys, keys[0].partition(b"}")[0] + NEVER_THERE)
    return (b"%d" % len(keys), *keys, *call.args)


class BlockingStore:
    """One command connection of one thread: the keepalive's."""

    def __init__(self, url: str, *, deadline_s: float, name: str = "gpulockd-keepalive") -> None:
        """:raises StoreUnavailable: if no connection can be made within the deadline (in seconds)"""
        self.url = address.check_url(url)
        self._many = address.is_cluster(url)
        with mapped(url):
            self._client = (BlockingCluster if self._many else address.blocking_client)(
                url, deadline_s=deadline_s, name=name
            )

    def ask(self, call: Call[T]) -> T:
        """Run a script and return its typed answer.

        :raises StoreUnavailable: if no answer came within the deadline; the script may have run
        """
        run: Any = self._client.execute_command
        words = ("FCALL", call.script.function, *script_args(call, self._many))
        with mapped(self.url):
            try:
                reply = run(*words)
            except broken.ResponseError as missing:
                if NOT_LOADED not in str(missing):
                    raise
                self._load(call.script.text, words)
                reply = run(*words)
        return call.read(reply)

    def _load(self, library: str, words: tuple[Any, ...]) -> None:
        client: Any = self._client
        try:
            if self._many:
                client.load(library, words)
            else:
                client.execute_command("FUNCTION LOAD", "REPLACE", library)
        except broken.ResponseError as refused:
            check_loaded(refused, address.without_secret(self.url))

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        client = self._client
        return client.descriptors() if isinstance(client, BlockingCluster) else address.descriptors(client)

    def close(self) -> None:
        """Close the connection; never raises for a server that is away."""
        try:
            self._client.close()
        except (broken.RedisError, OSError):
            return
