"""Redis or Valkey: which one the programs here use, whether it can be relied on, and whose locks are in it besides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from gpulockd.cli.doctoring.finding import Finding, Host, fail, ok, warn
from gpulockd.client.finding import Whereabouts, find_store
from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger.address import without_secret
from gpulockd.ledger.examination import Examined, Foreigners, examine, foreign_keys
from gpulockd.ledger.keys import FLEET_POOLS
from gpulockd.ledger.store import OLDEST_VERSION
from gpulockd.model import GPU_KEY_PREFIX

CHECK = "redis"
SLOW_MS = 20.0
SKEW_S = 2.0
FULL = 0.9
MOST_NAMED = 10
FROM_YIVIDEO, FROM_REDIS_LOCK = "docs/migrate-yivideo.md", "docs/migrate-redis-lock.md"


def look(host: Host) -> Iterator[Finding]:
    """Say which store the programs here use, and how it is."""
    try:
        found = find_store()
    except ConfigError as wrong:
        yield fail(CHECK, wrong.message.removesuffix(f": {wrong.cure}"), wrong.cure or "correct GPULOCKD_REDIS_URL")
        return
    except GpuLockError as unknown:
        yield fail(CHECK, unknown.message, "start 'gpulockd serve', or set GPULOCKD_REDIS_URL")
        return
    yield from _whose(found, host)
    try:
        seen = examine(found.url, found.pool or "default")
    except StoreUnavailable as away:
        yield fail(CHECK, away.message, "start it, or correct GPULOCKD_REDIS_URL or redis.url")
        return
    except GpuLockError as wrong:
        yield fail(CHECK, wrong.message, "'gpulockd doctor --redis-acl' prints what a user needs")
        return
    yield from judge(seen, is_private=_is_private(found.url, host))
    yield from _unfit(seen)
    yield from judge_foreign(seen)
    yield from _of_yivideo()


def _whose(found: Whereabouts, host: Host) -> Iterator[Finding]:
    by = "GPULOCKD_REDIS_URL" if os.environ.get("GPULOCKD_REDIS_URL") else "this host's daemon"
    yield ok(CHECK, f"programs here use {without_secret(found.url)} ({by}), pool {found.pool or '(asked of it)'}")
    theirs = str(host.hello.get("store") or "")
    if by == "GPULOCKD_REDIS_URL" and theirs and theirs != found.url:
        text = f"this host's daemon uses another store, {without_secret(theirs)}: what holds here does not hold there"
        yield warn(CHECK, text, "unset GPULOCKD_REDIS_URL, so that programs ask the daemon")


def _is_private(url: str, host: Host) -> bool:
    """Whether it is the Valkey that this host's daemon has started."""
    return bool(host.folder) and url.startswith(f"unix://{host.folder}/")


def judge(seen: Examined, *, is_private: bool) -> Iterator[Finding]:
    """Say how a store is.

    :param is_private: whether it is the one that the daemon starts itself
    """
    yield _version(seen.info, is_private)
    policy = seen.info.get("maxmemory_policy")
    if policy not in (None, "noeviction"):
        text = f"maxmemory-policy is {policy}: Redis may throw locks away, so the daemon refuses it"
        yield fail(CHECK, text, "CONFIG SET maxmemory-policy noeviction (and in redis.conf), or a server of its own")
    yield from _room(seen.info)
    yield from _keeping(seen.info, is_private)
    if seen.info.get("role") == "slave":
        yield fail(CHECK, f"{seen.shown} is a replica, which takes no writes", "name the primary, or redis+sentinel://")
    for right in seen.refused:
        yield fail(CHECK, f"this user of Redis may not {right}", "'gpulockd doctor --redis-acl' prints what it needs")
    if seen.latency_ms > SLOW_MS:
        text = f"Redis answers after {seen.latency_ms:.0f} ms: each hand-off takes that long at least"
        yield warn(CHECK, text, "put it nearer, or look at SLOWLOG GET and LATENCY DOCTOR")
    else:
        yield ok(CHECK, f"it answers after {seen.latency_ms:.1f} ms")
    if abs(seen.ahead_s) > SKEW_S:
        way = "ahead of" if seen.ahead_s > 0 else "behind"
        text = f"the clock of Redis is {abs(seen.ahead_s):.0f} s {way} this host's: times in logs and events differ"
        yield warn("clock", text, "timedatectl set-ntp true on both; locks themselves do not depend on it")
    else:
        yield ok("clock", f"this host and Redis agree within {SKEW_S:g} s")


def _version(info: dict[str, Any], is_private: bool) -> Finding:
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version") or "0")
    said = str(info.get("redis_version") or "0")
    if said != "0" and tuple(int(part) for part in said.split(".")[:2]) < OLDEST_VERSION:
        return fail(CHECK, f"{name} {version} is too old", "Redis 7.0 or Valkey 7.2 at least")
    return ok(CHECK, f"{name} {version}, {'the private one of the daemon' if is_private else 'a server of your own'}")


def _room(info: dict[str, Any]) -> Iterator[Finding]:
    most, used = int(info.get("maxmemory") or 0), int(info.get("used_memory") or 0)
    if most and used > FULL * most:
        text = f"Redis has used {100 * used // most} % of its maxmemory: soon it takes no writes"
        yield fail(CHECK, text, "CONFIG SET maxmemory to more, or remove what others keep there")


def _keeping(info: dict[str, Any], is_private: bool) -> Iterator[Finding]:
    """Persistence: what a restart of the server costs."""
    appends = int(info.get("aof_enabled") or 0)
    if appends and info.get("aof_last_write_status") not in (None, "ok"):
        yield fail(CHECK, "Redis cannot write its append-only file", "look at its log; is the disk full?")
    elif info.get("rdb_last_bgsave_status") not in (None, "ok"):
        yield fail(CHECK, "Redis could not save and may refuse writes (MISCONF)", "look at its log; is the disk full?")
    elif appends:
        yield ok(CHECK, "it keeps an append-only file: a restart costs no lock")
    elif is_private or "aof_enabled" in info:
        text = "Redis keeps no append-only file: after its restart the pool waits until all holders are known again"
        yield warn(CHECK, text, "CONFIG SET appendonly yes (and in redis.conf)")


def _unfit(seen: Examined) -> Iterator[Finding]:
    if not seen.unfit:
        return
    names = [f'"{ascii(name)[2:-1]}"' for name in seen.unfit[:MOST_NAMED]]
    more = f" and {len(seen.unfit) - MOST_NAMED:,} more" if len(seen.unfit) > MOST_NAMED else ""
    what = f"the list of pools names what can be none: {', '.join(names)}{more}; it is passed over"
    yield warn(CHECK, what, f"in redis-cli: SREM {FLEET_POOLS} {names[0]}")


def judge_foreign(seen: Examined) -> Iterator[Finding]:
    """Say which other locks are in the store."""
    if seen.foreign.named:
        yield from _named(seen.foreign)
    elif not seen.searched:
        yield ok("foreign keys", "not looked for: this user of Redis may not, or there are too many keys")
    else:
        yield ok("foreign keys", "no other lock has keys of these names in it")


def _named(foreign: Foreigners) -> Iterator[Finding]:
    for key in foreign.named[:MOST_NAMED]:
        where = f"{key.key!r} in database {key.db}"
        if key.kind == "YiVideo":
            text = f"{where} is YiVideo's own lock, held by {key.value!r}: it does not keep gpulockd's holders out"
            cure = f"move that worker to gpulockd.compat.yivideo; {FROM_YIVIDEO}"
        else:
            text = f"{where} is a lock of {key.kind}: it does not keep gpulockd's holders out"
            cure = f"let that program use gpu_lock({key.key.removeprefix('lock:')!r}); {FROM_REDIS_LOCK}"
        yield fail("foreign keys", text, cure)
    more = foreign.more + len(foreign.named[MOST_NAMED:])
    if more:
        text = f"and {more:,} more keys of such names"
        yield fail("foreign keys", text, f"redis-cli --scan --pattern '{GPU_KEY_PREFIX}*' lists them")


def _of_yivideo() -> Iterator[Finding]:
    """YiVideo's workers have their own Redis, which their environment names."""
    host, port = os.environ.get("REDIS_HOST"), os.environ.get("REDIS_PORT")
    if not (host and port and port.isdigit()):
        return
    try:
        yield from _named(foreign_keys(f"redis://{host}:{port}/{os.environ.get('REDIS_LOCK_DB', '2')}"))
    except GpuLockError as wrong:
        yield warn("foreign keys", f"REDIS_HOST and REDIS_PORT: {wrong.message}", "unset them, if YiVideo is not used")
