"""What one look at a store shows: what it is, how it keeps, what this user may do there, and foreign locks in it.

Its law: it changes nothing. The two writes that it tries are of a key and a channel that nobody has.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
from redis import exceptions as broken
from redis.cluster import RedisCluster

from gpulockd.ledger import address, pools, verbs
from gpulockd.ledger.keys import FLEET_POOLS, PoolKeys
from gpulockd.ledger.store import NOT_LOADED, script_args
from gpulockd.ledger.troubles import mapped
from gpulockd.model import GPU_KEY_PREFIX

DEADLINE_S = 2.0
ASKED = 7
MOST_SCANNED = 50_000
SCAN_PAGE = 1_000
SEARCH_S = 5.0
"""How long foreign keys are looked for at most (in seconds)."""
MOST_NAMED = 10
"""So many foreign keys of a database are read; of the others only how many there are."""
FOREIGN_PATTERNS = (f"{GPU_KEY_PREFIX}*", f"lock:{GPU_KEY_PREFIX}*", f"lock-signal:{GPU_KEY_PREFIX}*")
YIVIDEO = b"locked_by_"


class Foreign(msgspec.Struct, frozen=True):
    """A key that another lock has in this store: which database, whose it looks like, and what it says."""

    key: str
    db: int
    kind: str
    value: str


class Foreigners(msgspec.Struct, frozen=True):
    """The keys of other locks: some of them, and how many there are besides."""

    named: tuple[Foreign, ...] = ()
    more: int = 0


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen. `latency_ms`: the median of some questions; `ahead_s`: the server's clock less this host's.

    `refused`: what this user may not do, in words; `searched`: whether foreign keys could be looked for, and to the
    end. `info` is what the server says of itself; `unfit` is what stands on the list of pools and is no pool's name.
    """

    shown: str
    info: dict[str, Any]
    latency_ms: float
    ahead_s: float
    refused: tuple[str, ...]
    foreign: Foreigners
    searched: bool
    unfit: tuple[bytes, ...] = ()


def examine(url: str, pool: str) -> Examined:
    """Look at a store; blocks for a few round trips.

    :param pool: whose rights are tried
    :raises StoreUnavailable: if it cannot be reached or cannot serve
    :raises ConfigError: if the URL cannot name one, or user or password are not taken
    """
    keys = PoolKeys(pool)
    with mapped(url):
        client = _client(url)
        try:
            node: Any = _node(client, keys)
            latency_ms = _latency_ms(node)
            found, searched = _foreign(node)
            return Examined(
                shown=address.without_secret(url),
                info=_info(node),
                latency_ms=latency_ms,
                ahead_s=_ahead_s(node),
                refused=tuple(_refused(client, node, keys)),
                foreign=found,
                searched=searched,
                unfit=_unfit(client),
            )
        finally:
            with suppress(broken.RedisError, OSError):
                client.close()


def foreign_keys(url: str) -> Foreigners:
    """Return the keys of other locks at a URL, in all of its databases.

    :raises GpuLockError: if it cannot be reached or refuses us
    """
    with mapped(url):
        client = _client(url)
        try:
            return _foreign(client)[0]
        finally:
            client.close()


def _client(url: str) -> Any:
    return address.blocking_client(address.check_url(url), deadline_s=DEADLINE_S, name="gpulockd-doctor")


def _node(client: Any, keys: PoolKeys) -> Any:
    """The server that has the pool."""
    if not isinstance(client, RedisCluster):
        return client
    return client.get_redis_connection(client.get_node_from_key(f"{keys.base}meta"))


def _latency_ms(node: Any) -> float:
    took = []
    for _ in range(ASKED):
        began_s = time.monotonic()
        node.execute_command("TIME")  # a server that cannot save refuses PING
        took.append(time.monotonic() - began_s)
    return 1000 * statistics.median(took)


def _ahead_s(node: Any) -> float:
    """By the answer that came soonest: one that was long under way tells little."""
    found = []
    for _ in range(ASKED):
        before_s = time.time()
        seconds, micros = node.execute_command("TIME")
        after_s = time.time()
        found.append((after_s - before_s, int(seconds) + int(micros) / 1e6 - (before_s + after_s) / 2))
    return min(found)[1]


def _info(node: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section in ("server", "memory", "persistence", "replication"):
        with suppress(broken.NoPermissionError):
            found |= node.info(section)
    return found


def _refused(client: Any, node: Any, keys: PoolKeys) -> Iterator[str]:
    """Try each kind of right that a client of the pool needs, and name those that are missing."""
    snapshot = verbs.snapshot(keys, length=1)
    nobody = f"{keys.base}doctor:nobody"
    tries: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("read the pool's keys", lambda: client.execute_command("EXISTS", f"{keys.base}meta")),
        ("read the fleet's list of pools", lambda: client.execute_command("SISMEMBER", FLEET_POOLS, keys.pool)),
        ("write the pool's keys", lambda: client.execute_command("DEL", nobody)),
        ("run the pool's functions", lambda: _called(client, snapshot, keys)),
        ("ring the pool's channels", lambda: node.execute_command("PUBLISH", nobody, "")),
        ("hear the pool's channels", lambda: _heard(node, nobody)),
    )
    for what, attempt in tries:
        try:
            attempt()
        except broken.NoPermissionError:
            yield what
        except broken.ResponseError as answer:
            # A replica and a server that cannot save refuse too; what they say of themselves tells that.
            if "permission" in str(answer):
                yield what


def _called(client: Any, call: verbs.Call[Any], keys: PoolKeys) -> None:
    """Run a function that reads; where the pool is not begun there is nothing to read, and nothing shall begin."""
    if not client.execute_command("EXISTS", f"{keys.base}meta"):
        return
    try:
        client.execute_command("FCALL", call.script.function, *script_args(call, isinstance(client, RedisCluster)))
    except broken.ResponseError as answer:
        if NOT_LOADED not in str(answer):
            raise


def _heard(node: Any, channel: str) -> None:
    with node.pubsub() as heard:
        heard.subscribe(channel)
        heard.get_message(timeout=DEADLINE_S)


def _unfit(client: Any) -> tuple[bytes, ...]:
    """What the list of pools has that is no pool's name; nothing if this user may not read it."""
    try:
        listed = client.execute_command("SMEMBERS", FLEET_POOLS)
    except broken.ResponseError:
        return ()
    return tuple(sorted(name for name in map(_bytes, listed) if not pools.is_usable(name)))


def _foreign(node: Any) -> tuple[Foreigners, bool]:
    """Return the keys of other locks in all databases, and whether that was all."""
    home = int((node.connection_pool.connection_kwargs or {}).get("db") or 0)
    try:
        databases = {home, *_databases(node)}
        found: list[Foreign] = []
        more, whole, until_s = 0, True, time.monotonic() + SEARCH_S
        for db in sorted(databases):
            if db != home:
                node.execute_command("SELECT", db)
            names, ended = _scanned(node, until_s)
            found += [_foreign_at(node, db, name) for name in names[:MOST_NAMED]]
            more += len(names[MOST_NAMED:])
            whole = whole and ended
        return Foreigners(tuple(found), more), whole
    except (broken.NoPermissionError, broken.ResponseError):
        return Foreigners(), False
    finally:
        with suppress(broken.RedisError):
            node.execute_command("SELECT", home)


def _databases(node: Any) -> list[int]:
    return [int(name[2:]) for name in node.info("keyspace") if name.startswith("db") and name[2:].isdigit()]


def _scanned(node: Any, until_s: float) -> tuple[list[bytes], bool]:
    """Return the names of such keys in the database that is chosen, and whether that was all."""
    names: set[bytes] = set()
    for pattern in FOREIGN_PATTERNS:
        cursor, seen = 0, 0
        while True:
            answer = node.execute_command("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_PAGE)
            cursor, seen = int(answer[0]), seen + SCAN_PAGE
            names.update(_bytes(name) for name in answer[1])
            if not cursor:
                break
            if seen >= MOST_SCANNED or time.monotonic() > until_s:
                return sorted(names), False
    return sorted(names), True


def _foreign_at(node: Any, db: int, name: bytes) -> Foreign:
    value = b""
    with suppress(broken.ResponseError):
        value = _bytes(node.execute_command("GET", name) or b"")
    shown = value.decode("utf-8", "replace")
    if value.startswith(YIVIDEO):
        kind, shown = "YiVideo", shown[len(YIVIDEO) :]
    else:
        kind = "redis-py" if name.startswith(GPU_KEY_PREFIX.encode()) else "python-redis-lock"
    return Foreign(name.decode("utf-8", "replace"), db, kind, shown[:64])


def _bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()
