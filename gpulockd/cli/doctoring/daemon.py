"""The daemon of this host: is it there, does it answer, and are its GPUs to be had?"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from gpulockd import __version__, places
from gpulockd.cli import http
from gpulockd.cli.connection import listens
from gpulockd.cli.doctoring.finding import Finding, Host, fail, ok, warn
from gpulockd.cli.records import name_of, seconds
from gpulockd.cli.talk import NOT_PERMITTED, CommandError

CHECK = "daemon"
LOG = "journalctl -u gpulockd -e"
DEADLINE_S = 2.0

_CREDENTIALS = struct.Struct("3i")
_INIT = 1

_STATES = {
    "quarantined": ("what stays on it must end", "nvidia-smi shows what; then 'gpulockd gpu resume {}'"),
    "lost": ("the card has failed", "look at 'dmesg' for Xid errors; reset the card or reboot"),
}


def look(host: Host) -> Iterator[Finding]:
    """Say how the daemon is; `host` learns where it is and what it says of itself."""
    try:
        daemon = http.find()
    except http.DaemonDown as down:
        yield _absent(down)
        return
    host.socket, host.folder = daemon.path, os.path.dirname(daemon.path)
    host.hello, host.pid = hello(host.folder)
    try:
        with daemon:
            yield _ready(daemon, host)
            yield from _pool(daemon, host)
    except http.DaemonDown as down:
        yield _unanswered(down, daemon.path)
    except CommandError as wrong:
        yield fail(CHECK, wrong.what, wrong.hint or LOG)
    said = host.hello.get("version")
    if said and said != __version__:
        yield warn(CHECK, f"the daemon runs version {said}, this command is {__version__}", "restart the daemon")


def hello(folder: str) -> tuple[dict[str, object], int | None]:
    """Return what the guard says of its daemon, and the daemon's pid; nothing where it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guard:
            guard.settimeout(DEADLINE_S)
            guard.connect(os.path.join(folder, places.GUARD_SOCKET))
            peer = guard.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            guard.sendall(b'{"verb": "hello", "leases": []}\n')
            with guard.makefile("rb") as said:
                answer = json.loads(said.readline(65536))
    except (OSError, ValueError):
        return {}, None
    pid = _CREDENTIALS.unpack(peer)[0]
    # A socket that the service manager has made may still be said to be its own.
    return (answer if isinstance(answer, dict) else {}), (pid if pid > _INIT else None)


def _absent(down: http.DaemonDown) -> Finding:
    if down.code == NOT_PERMITTED:
        return fail(CHECK, down.what, down.hint)
    if os.environ.get("GPULOCKD_REDIS_URL"):
        text = f"{down.what}; programs here use GPULOCKD_REDIS_URL and have no guard"
        return warn(CHECK, text, "a host without GPUs needs none; else 'gpulockd serve'")
    return fail(CHECK, down.what, http.START_HINT)


def _unanswered(down: http.DaemonDown, path: str) -> Finding:
    if down.code != NOT_PERMITTED and listens(path):
        return fail(CHECK, f"the daemon at {path} takes connections and does not answer", f"see '{LOG}'; restart it")
    return fail(CHECK, down.what, down.hint)


def _ready(daemon: http.Daemon, host: Host) -> Finding:
    try:
        ready = daemon.get("/readyz")
    except http.Refused as refused:
        if refused.status != 503:
            raise
        return fail(CHECK, f"the daemon is not ready: {refused.what}", refused.hint or LOG)
    version = host.hello.get("version", "")
    gpus = f"{ready['gpus']} GPU{'' if ready['gpus'] == 1 else 's'}"
    return ok(CHECK, f"gpulockd {version} at {daemon.path} is ready: pool {ready['pool']}, {gpus}")


def _pool(daemon: http.Daemon, host: Host) -> Iterator[Finding]:
    pool: dict[str, Any] = next(iter(daemon.get("/api/v1/pools")["pools"]), {})
    if pool.get("frozen_s"):
        text = f"pool {pool['pool']} grants nothing for {seconds(pool['frozen_s'])}: {pool['frozen_why']}"
        yield warn("pool", text, "wait; programs keep their places")
    if pool and not pool.get("guarded"):
        text = f"pool {pool['pool']} has no guard: a lost holder is noticed only when its session ends"
        yield warn("pool", text, "gpus.guard: true in config.yml, and restart the daemon")
    gpus = daemon.get("/api/v1/gpus")["gpus"]
    host.uuids = tuple(gpu["uuid"] for gpu in gpus if gpu.get("offered") and gpu.get("uuid"))
    for gpu in gpus:
        name, state = name_of(gpu["key"]), gpu.get("state")
        if state in _STATES:
            why, cure = _STATES[state]
            yield fail("gpu", f"GPU {name} is {state}: {why}", cure.format(name))
        elif state == "drained":
            yield warn("gpu", f"GPU {name} is drained: nobody begins on it", f"gpulockd gpu resume {name}")
