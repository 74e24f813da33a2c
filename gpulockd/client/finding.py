"""Which store and which pool: what the call says, the environment, or the local daemon."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

from gpulockd import places
from gpulockd.errors import StoreUnavailable
from gpulockd.ledger.address import check_url

HELLO_DEADLINE_S = 1.0
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


def _check_listens(url: str, folder: str) -> None:
    """A store on a unix socket that nobody listens on, and whose daemon is not there either, will not come by itself.

    :raises StoreUnavailable: if it refuses; it says what to start
    """
    path = url.removeprefix("unix://") if url.startswith("unix:///") else ""
    if not path or not (_refuses(path) and _refuses(str(Path(folder) / places.GUARD_SOCKET))):
        return
    raise StoreUnavailable(
        f"the store at {path} does not run, and neither does the daemon that has started it: start `gpulockd serve`, "
        f"or set GPULOCKD_REDIS_URL (the file {Path(folder) / places.STORE_NOTE} is left over and names that store)"
    )


def _refuses(path: str) -> bool:
    """Whether nobody listens on a unix socket; one that may not be asked, or has no time, is somebody's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
        tried.settimeout(HELLO_DEADLINE_S)
        try:
            tried.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False


def find_store(pool: str | None = None) -> Whereabouts:
    """Find the store and the pool.

    :param pool: the pool that the call names, None if it names none
    :raises StoreUnavailable: if neither the environment nor a daemon names a store, or it is clear that it does not run
    :raises ConfigError: if the URL cannot name one
    """
    pool = pool or os.environ.get("GPULOCKD_POOL") or None
    url = os.environ.get("GPULOCKD_REDIS_URL")
    runtime = places.find_runtime()
    if url:
        local = _read(runtime[0]) if runtime and pool is None else {}
        same = local.get("url") == url
        return Whereabouts(check_url(url), pool or (local.get("pool") if same else None), None)
    if runtime is None:
        raise StoreUnavailable(NO_STORE)
    local = _read(runtime[0])
    if not local.get("url"):
        raise StoreUnavailable(f"{NO_STORE} (no daemon answers in {runtime[0]})")
    _check_listens(local["url"], runtime[0])
    return Whereabouts(check_url(local["url"]), pool or local.get("pool"), runtime[1])


def _read(folder: str) -> dict[str, str]:
    """What the daemon says, or what it has left for clients while it is down."""
    answer = hello(folder)
    if answer is not None:
        return {"url": str(answer.get("store", "")), "pool": str(answer.get("pool", ""))}
    note = places.read_store_note(folder)
    return dict(note) if note else {}
