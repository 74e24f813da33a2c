"""The connections to Redis or Valkey, behind two verbs: ask a script, and hear the next message.

The only place where the transport's exceptions, redis-py's among them, become ours. Every command has its own deadline
and is sent once; whoever asks again does so with the same ids.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, TypeVar

from redis import exceptions as broken

from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger import address, pools
from gpulockd.ledger.keys import FLEET_HOSTS, FLEET_POOLS
from gpulockd.ledger.loading import check_loaded
from gpulockd.ledger.verbs import Call
from gpulockd.ledger.wire.by_redis_py import RedisPyCommands
from gpulockd.ledger.wire.commands import Commands, WireCommands
from gpulockd.ledger.wire.trouble import Broken, Late, Refused, Unwelcome

T = TypeVar("T")

OLDEST_VERSION = (7, 0)
NOT_LOADED = "Function not found"


class mapped:
    """Turn what the transport raises inside the block into our errors.

    :raises StoreUnavailable: if the server cannot be reached, loads, is read-only or full
    :raises ConfigError: if it refuses our credentials
    """

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            ours = _our_error(error, address.without_secret(self._url))
            if ours is not None:
                raise ours from error


_AWAY = (broken.ConnectionError, broken.TimeoutError, broken.ReadOnlyError, broken.OutOfMemoryError)
_REFUSED = (broken.AuthenticationError, broken.AuthorizationError, broken.NoPermissionError)
_NOT_NOW = ("LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN", "BUSY", "MISCONF", "NOREPLICAS", "OOM", "READONLY")
_SPOILT = "WRONGTYPE"
_NOT_YOU = ("NOAUTH", "NOPERM", "WRONGPASS")


def _our_error(error: Exception, shown: str) -> GpuLockError | None:
    if isinstance(error, Late):
        return StoreUnavailable(f"Redis at {shown} {error}")
    if isinstance(error, Refused):
        return _refusal(error, shown)
    return _error_of_redis_py(error, shown)


def _refusal(refused: Refused, shown: str) -> GpuLockError:
    if isinstance(refused, Unwelcome) or refused.code in _NOT_YOU:
        return ConfigError(f"Redis at {shown} refused: {refused}; check user, password and ACL")
    return _answered(str(refused), shown)


def _answered(text: str, shown: str) -> GpuLockError:
    """A key that is not what it should be is waited for too: holders go on, and whoever mends it mends all."""
    if text.startswith((*_NOT_NOW, _SPOILT)):
        return StoreUnavailable(f"Redis at {shown} cannot be used: {text}{_cure(text)}")
    return GpuLockError(f"Redis at {shown} answered: {text}{_cure(text)}")


def _error_of_redis_py(error: Exception, shown: str) -> GpuLockError | None:
    if isinstance(error, _REFUSED):
        return ConfigError(f"Redis at {shown} refused: {error}; check user, password and ACL")
    if isinstance(error, (*_AWAY, Broken)):
        return StoreUnavailable(
            f"Redis at {shown} cannot be used: {str(error) or type(error).__name__}; is it running?"
        )
    if isinstance(error, broken.RedisClusterException):
        return StoreUnavailable(f"Redis Cluster at {shown} cannot be used: {error}")
    if isinstance(error, broken.ResponseError):
        return _answered(str(error), shown)
    if isinstance(error, broken.RedisError):
        return StoreUnavailable(f"Redis at {shown} answered what cannot be read: {error}")
    if isinstance(error, OSError | EOFError) and not isinstance(error, TimeoutError | GpuLockError):
        return StoreUnavailable(f"Redis at {shown} cannot be reached: {error}; is it running?")
    return None


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

    def __repr__(self) -> str:
        return f"<Store {address.without_secret(self.url)} {self.commands} commands>"

    def begin(self, call: Call[Any]) -> asyncio.Future[Any] | None:
        """Send a script now, before anything is awaited; `ask` takes what is returned. None: only `ask` can send it."""
        begun = self._commands.begin((b"FCALL", call.script.function, *_script_args(call)))
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
                    raise _our_error(trouble, address.without_secret(self.url)) or trouble from trouble
        reply = await self._command("FCALL", call.script.function, *_script_args(call), library=call.script.text)
        return call.read(reply)

    async def _command(self, *words: Any, library: str = "") -> Any:
        self.commands += 1
        with mapped(self.url):
            try:
                return await self._commands.run(words)
            except (Refused, broken.ResponseError) as missing:
                if not library or NOT_LOADED not in str(missing):
                    raise
            await self._load(library)
            return await self._commands.run(words)

    async def _load(self, library: str) -> None:
        try:
            await self._commands.load(library)
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
    """Own connections to one server; many servers are redis-py's to know."""
    if address.is_one_server(url):
        return WireCommands(url, deadline_s=deadline_s, name=name)
    return RedisPyCommands(url, deadline_s=deadline_s, name=name)


def _pairs(fields: Any) -> list[tuple[bytes, bytes]]:
    if isinstance(fields, dict):
        return list(fields.items())
    return list(zip(fields[::2], fields[1::2], strict=True))


def _script_args(call: Call[Any]) -> tuple[Any, ...]:
    return (b"%d" % len(call.keys.wire), *call.keys.wire, *call.args)


class BlockingStore:
    """One command connection of one thread: the keepalive's."""

    def __init__(self, url: str, *, deadline_s: float, name: str = "gpulockd-keepalive") -> None:
        """:raises StoreUnavailable: if no connection can be made within the deadline (in seconds)"""
        self.url = address.check_url(url)
        with mapped(url):
            self._client = address.blocking_client(url, deadline_s=deadline_s, name=name)

    def ask(self, call: Call[T]) -> T:
        """Run a script and return its typed answer.

        :raises StoreUnavailable: if no answer came within the deadline; the script may have run
        """
        run: Any = self._client.execute_command
        with mapped(self.url):
            try:
                reply = run("FCALL", call.script.function, *_script_args(call))
            except broken.ResponseError as missing:
                if NOT_LOADED not in str(missing):
                    raise
                self._load(call.script.text)
                reply = run("FCALL", call.script.function, *_script_args(call))
        return call.read(reply)

    def _load(self, library: str) -> None:
        run: Any = self._client.execute_command
        try:
            run("FUNCTION LOAD", "REPLACE", library)
        except broken.ResponseError as refused:
            check_loaded(refused, address.without_secret(self.url))

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        return address.descriptors(self._client)

    def close(self) -> None:
        """Close the connection; never raises for a server that is away."""
        try:
            self._client.close()
        except (broken.RedisError, OSError):
            return


def _cure(answer: str) -> str:
    """What to do about an answer that is a fault of the ledger's own functions."""
    if "user_function" not in answer:
        return ""
    return (
        "; what the store has of this pool was most likely written by another version of gpulockd: stop all programs "
        "of the pool and delete its keys (gpulockd:{POOL}:*), or give the daemon another state folder (--state-dir)"
    )
