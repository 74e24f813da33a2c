"""A warning for whom the environment sends to another store or pool than the local daemon's, which `run` uses."""

from __future__ import annotations

import json
import os
import socket
from importlib import import_module

from gpulockd import places
from gpulockd.cli.talk import say

HELLO_DEADLINE_S = 1.0


def warn(api_socket: str) -> None:
    """Say in one line what of the environment is not what the daemon at this socket serves."""
    pool, url = os.environ.get("GPULOCKD_POOL"), os.environ.get("GPULOCKD_REDIS_URL")
    if not (pool or url):
        return
    serves = _hello(os.path.dirname(api_socket))
    wrong = []
    if pool and serves.get("pool") not in (None, pool):
        wrong.append(f"GPULOCKD_POOL={pool} is not the pool of the local daemon ({serves['pool']})")
    if url and "store" in serves and _place(url) != _place(str(serves["store"])):
        # Neither URL is shown, since each may hold a password.
        wrong.append("GPULOCKD_REDIS_URL is not the store of the local daemon")
    if wrong:
        say(f"warning: {' and '.join(wrong)}, which run uses")


def _hello(folder: str) -> dict[str, object]:
    """What the daemon says of itself, nothing if it does not; as `gpulockd.client.finding.hello`, without Redis."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guard:
            guard.settimeout(HELLO_DEADLINE_S)
            guard.connect(os.path.join(folder, places.GUARD_SOCKET))
            guard.sendall(b'{"verb": "hello", "leases": []}\n')
            with guard.makefile("rb") as said:
                answer = json.loads(said.readline(65536))
    except (OSError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _place(url: str) -> tuple[str, str, str]:
    """What of a URL says which store it is: no user, no password, and no default spelt out."""
    parts = import_module("urllib.parse").urlsplit(url)  # slow to load, and seldom needed
    host = parts.netloc.rpartition("@")[2].lower()
    path = parts.path.rstrip("/")
    if parts.scheme in ("redis", "rediss"):
        return parts.scheme, host.removesuffix(":6379"), "" if path == "/0" else path
    return parts.scheme, host, path
