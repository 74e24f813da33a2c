"""What a user of the store must be allowed to do, and nothing more: the ACL of the clients and of the daemon.

A client may change the locks of its pool, for the functions run with its rights; it may load no code, see no other
keys, and change nothing of the fleet's configuration.
"""

from __future__ import annotations

from gpulockd.ledger.keys import FLEET_BASE, FLEET_POOLS, PoolKeys

GREETING = ("hello", "auth", "ping", "select", "client|setname", "client|id", "info", "quit", "reset")
CLUSTER = ("cluster|slots", "cluster|shards", "cluster|nodes", "cluster|myid", "command", "asking", "readonly")
HEARING = ("subscribe", "unsubscribe", "ssubscribe", "sunsubscribe", "publish", "spublish")
BY_FUNCTIONS = (
    *("fcall", "del", "exists", "get", "set", "pexpireat", "time"),
    *("hdel", "hexists", "hget", "hgetall", "hincrby", "hkeys", "hlen", "hmget", "hset", "hsetnx"),
    *("sadd", "scard", "sismember", "smembers", "srem"),
    *("xadd", "xinfo|stream", "xrange", "xrevrange", "xtrim"),
    *("zadd", "zcard", "zrange", "zrangebyscore", "zrank", "zrem", "zscore"),
)
"""What the ledger's functions call, and what is read beside them."""

COMMANDS = (*GREETING, *CLUSTER, *HEARING, *BY_FUNCTIONS)
OF_THE_DAEMON = ("function|load", "function|list", "config|get", "wait")
"""What only the daemon does: it loads the functions, so that no client has to."""


def client_rule(user: str, pool: str) -> str:
    """Return the `ACL SETUSER` line of a pool's clients; the password is left to who sends it.

    :raises ConfigError: if `pool` cannot be the name of a pool
    """
    base = PoolKeys(pool).base
    keys = f"~{base}* ~{FLEET_POOLS} %R~{FLEET_BASE}*"
    return _rule(user, keys, f"&{base}*", COMMANDS)


def daemon_rule(user: str) -> str:
    """Return the `ACL SETUSER` line of the daemons of a fleet; the password is left to who sends it."""
    return _rule(user, "~gpulockd:*", "&gpulockd:*", (*COMMANDS, *OF_THE_DAEMON))


def _rule(user: str, keys: str, channels: str, commands: tuple[str, ...]) -> str:
    allowed = " ".join(f"+{command}" for command in commands)
    return f"ACL SETUSER {user} on >PASSWORD resetkeys {keys} resetchannels {channels} -@all {allowed}"
