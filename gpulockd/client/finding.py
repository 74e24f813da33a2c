"""Which store and which pool: what the call says, the environment, or the local daemon."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

from gpulockd import places
from gpulockd.errors import ConfigError, StoreUnavailable
from gpulockd.ledger.address import check_url

HELLO_DEADLINE_S = 1.0
GONE = (errno.ECONNREFUSED, errno.ENOENT)
NO_STORE = "no Redis is known here: start `gpulockd serve`, or set GPULOCKD_REDIS_URL"


class Whereabouts(NamedTuple):
    """A store, the pool that daemon or environment name (None: ask the store), and the daemon's socket."""

    url: str
    pool: str | None
    socket: str | None


def hello(folder: str) -> dict[str, object] | None:
    """What the local daemon says of itself: pool, store, guarded. None if none answers within a second."""
    path = str(Path(folder) / places.GUARD_SOCKET)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guard:
            guard.settimeout(HELLO_DEADLINE_S)
            guard.connect(path)
            guard.sendall(b'{"verb": "hello", "leases": []}\n')
            line = guard.makefile("rb").readline(65536)
        answer = json.loads(line)
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _check_store(url: str, folder: str) -> None:
    """Look at a private store before deadlines are spent on it: what is clear is said at once.

    :raises ConfigError: if its socket is closed to this user
    :raises StoreUnavailable: if nobody listens there nor in its daemon's place, so that nobody will start it
    """
    path = url.removeprefix("unix://") if url.startswith("unix:///") else ""
    if path and places.is_closed(path):
        raise _closed("the store's socket", path)
    if path and places.knock(path) in GONE and places.knock(str(Path(folder) / places.GUARD_SOCKET)) in GONE:
        raise StoreUnavailable(
            f"the store at {path} does not run, and neither does the daemon that has started it: start "
            f"`gpulockd serve`, or set GPULOCKD_REDIS_URL; {Path(folder) / places.STORE_NOTE} is left over, so remove "
            "it if that daemon is not to come back"
        )


def _closed(noun: str, path: str) -> ConfigError:
    cure = f"run {places.let_in(path)}"
    if "group" not in cure:
        cure += "; programs of several users need the service (`gpulockd install-service`)"
        if noun == "the store's socket":
            cure += ", or `gpulockd run`, which asks the daemon"
    return ConfigError(f"{noun} {path} is closed to user {os.getuid()}: {cure}", cure=cure)


def find_store(pool: str | None = None) -> Whereabouts:
    """Find the store and the pool.

    :param pool: the pool that the call names, None if it names none
    :raises StoreUnavailable: if neither the environment nor a daemon names a store, or it is clear that it does not run
    :raises ConfigError: if the URL cannot name one, or the daemon or its store is closed to this user
    """
    pool = pool or os.environ.get("GPULOCKD_POOL") or None
    url = os.environ.get("GPULOCKD_REDIS_URL")
    runtime = places.find_runtime()
    if url:
        local = _read(runtime[0]) if runtime and pool is None else {}
        same = local.get("url") == url
        return Whereabouts(check_url(url), pool or (local.get("pool") if same else None), None)
    if runtime is None:
        said = os.environ.get("GPULOCKD_SOCKET")
        raise StoreUnavailable(f"{NO_STORE} (GPULOCKD_SOCKET={said}: nothing is there)" if said else NO_STORE)
    local = _read(runtime[0])
    if not local.get("url"):
        guard = str(Path(runtime[0]) / places.GUARD_SOCKET)
        if places.is_closed(guard):
            raise _closed("the daemon's socket", guard)
        raise StoreUnavailable(f"{NO_STORE} (no daemon answers in {runtime[0]})")
    url = places.store_seen_from(runtime[0], local["url"])
    _check_store(url, runtime[0])
    return Whereabouts(check_url(url), pool or local.get("pool"), runtime[1])


def _read(folder: str) -> dict[str, str]:
    """What the daemon says, or what it has left for clients while it is down."""
    answer = hello(folder)
    if answer is not None:
        return {"url": str(answer.get("store", "")), "pool": str(answer.get("pool", ""))}
    note = places.read_store_note(folder)
    return dict(note) if note else {}
