"""Where the store is: one URL, and the redis-py clients that it means.

`redis://`, `rediss://`, `unix://`, `redis+sentinel://host:port[,host:port]/service[/db]` and
`redis+cluster://host:port[,host:port]`. Hidden retries and maintenance notifications are off: redis-py's own would
block for up to 58 s and run a script twice; our retries carry the same ids (docs/why.md, "Retries").
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry
from redis.sentinel import Sentinel

from gpulockd.errors import ConfigError

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")

AsyncClient = redis.asyncio.Redis
BlockingClient = redis.Redis | RedisCluster


def check_url(url: str) -> str:
    """Return `url` if it can name a store.

    :raises ConfigError: if its scheme is not one of `SCHEMES`, or it names no server
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"redis url {without_secret(url)!r}: the scheme must be one of {', '.join(SCHEMES)}")
    if parts.scheme == "unix" and not parts.path:
        raise ConfigError(f"redis url {url!r}: write unix:///path/to/store.sock")
    if parts.scheme == "redis+sentinel" and not parts.path.strip("/"):
        raise ConfigError(f"redis url {without_secret(url)!r}: write redis+sentinel://host:port/service")
    try:
        _ = [parts.port] if is_one_server(url) else hosts(url)
    except ValueError:
        raise ConfigError(f"redis url {without_secret(url)!r}: the port must be a number") from None
    return url


def without_secret(url: str) -> str:
    """The URL as it may be printed: its password replaced by `***`."""
    head, at, tail = url.rpartition("@")
    if not at:
        return url
    scheme, _, credentials = head.partition("://")
    user = credentials.partition(":")[0]
    return f"{scheme}://{user}:***@{tail}" if ":" in credentials else url


def is_cluster(url: str) -> bool:
    """Whether the URL means a Redis Cluster."""
    return url.startswith("redis+cluster://")


def is_one_server(url: str) -> bool:
    """Whether the URL names one server, not those of a Sentinel or Cluster."""
    return not url.startswith(("redis+sentinel://", "redis+cluster://"))


def hosts(url: str) -> list[tuple[str, int]]:
    """The servers that the URL of a Sentinel or Cluster names: host and port.

    :raises ValueError: if a port is no number
    """
    usual_port = 6379 if is_cluster(url) else 26379
    return [_host(place, usual_port) for place in urlsplit(url).netloc.rpartition("@")[2].split(",") if place]


def url_of_node(url: str, host: str, port: int) -> str:
    """The URL of one server of the cluster that `url` names, with its user, password and options."""
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    name = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(scheme="redis", netloc=f"{credentials}{at}{name}:{port}"))


def async_client(url: str, *, deadline_s: float, name: str) -> AsyncClient:
    """A client of one event loop. Commands carry no deadline of their own: `Store.ask` sets one.

    The store speaks to one server and to a cluster by itself.
    """
    common: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": deadline_s,
        "retry": AsyncRetry(NoBackoff(), 0),
        "client_name": name,
    }
    common["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    if url.startswith("redis+sentinel://"):
        named, service, more = _sentinel(url)
        sentinel = AsyncSentinel(named, sentinel_kwargs={"socket_timeout": deadline_s, **more}, **more, **common)
        client: redis.asyncio.Redis = sentinel.master_for(service)
        return client
    return redis.asyncio.Redis.from_url(url, single_connection_client=True, **common)


def blocking_client(url: str, *, deadline_s: float, name: str) -> BlockingClient:
    """A client for one thread; each command ends within `deadline_s`."""
    common: dict[str, Any] = {
        "socket_timeout": deadline_s,
        "socket_connect_timeout": deadline_s,
        "retry": Retry(NoBackoff(), 0),
        "client_name": name,
    }
    if is_cluster(url):
        named = hosts(url)
        nodes = [ClusterNode(*place) for place in named]
        return RedisCluster.from_url(url_of_node(url, *named[0]), startup_nodes=nodes, **common)
    common["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    if url.startswith("redis+sentinel://"):
        sentinels, service, more = _sentinel(url)
        sentinel = Sentinel(sentinels, sentinel_kwargs={"socket_timeout": deadline_s, **more}, **more, **common)
        client: redis.Redis = sentinel.master_for(service)
        return client
    return redis.Redis.from_url(url, single_connection_client=True, **common)


def connection_descriptor(connection: Any) -> list[int]:
    """The descriptor of a redis-py connection's socket, if it is open."""
    writer = getattr(connection, "_writer", None)
    sock = writer.get_extra_info("socket") if writer is not None else getattr(connection, "_sock", None)
    return [sock.fileno()] if sock is not None and sock.fileno() >= 0 else []


def descriptors(client: Any) -> list[int]:
    """The descriptors of a client's open sockets."""
    nodes = client.get_nodes() if isinstance(client, RedisCluster) else [client]
    found: list[int] = []
    for node in nodes:
        node = getattr(node, "redis_connection", None) or node
        pool = getattr(node, "connection_pool", node)
        connections = [getattr(node, "connection", None)]
        for name in ("_available_connections", "_in_use_connections", "_connections", "_free"):
            connections += list(getattr(pool, name, ()) or ())
        for connection in connections:
            found += connection_descriptor(connection)
    return sorted(set(found))


def _host(place: str, usual_port: int) -> tuple[str, int]:
    if place.startswith("["):
        name, _, port = place[1:].partition("]")
    else:
        name, _, port = place.partition(":")
    return name, int(port.lstrip(":") or usual_port)


def _sentinel(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    parts = urlsplit(url)
    service, _, db = parts.path.strip("/").partition("/")
    credentials = parts.netloc.rpartition("@")[0]
    user, _, password = credentials.partition(":")
    more: dict[str, Any] = {"db": int(db)} if db else {}
    if user:
        more["username"] = unquote(user)
    if password:
        more["password"] = unquote(password)
    return hosts(url), service, more
