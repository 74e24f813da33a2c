"""Where a daemon's files lie, for all who look for them: the runtime folder, its sockets and its note about the store.

The same rules serve the daemon that makes the folder and the programs that only search it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from gpulockd.errors import ConfigError

API_SOCKET = "api.sock"
GUARD_SOCKET = "guard.sock"
STORE_SOCKET = "store.sock"
STORE_NOTE = "store.json"
DAEMON_LOCK = "daemon.lock"

SYSTEM_RUNTIME = "/run/gpulockd"

LONGEST_SOCKET_PATH = 100
"""The kernel takes 107 bytes; the rest is room for the temporary names that servers bind first."""


def check_socket_path(path: str) -> str:
    """Return `path` if a unix socket can have it.

    :raises ConfigError: if it is longer than 100 bytes
    """
    length = len(os.fsencode(path))
    if length > LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"the socket path {path!r} has {length} bytes, and a unix socket takes {LONGEST_SOCKET_PATH}; "
            "choose a shorter folder with --socket or GPULOCKD_SOCKET"
        )
    return path


def split_socket(value: str) -> tuple[str, str]:
    """Return (runtime folder, API socket) for what `--socket` or GPULOCKD_SOCKET says: a socket or a folder.

    A folder that exists, and a name without a suffix, is a folder; its API socket is `api.sock`.
    """
    path = os.path.abspath(os.path.expanduser(value))
    is_folder = os.path.isdir(path) or value.endswith("/")
    if is_folder or not (os.path.exists(path) or os.path.splitext(path)[1]):
        return path, os.path.join(path, API_SOCKET)
    return os.path.dirname(path), path


def user_runtime(environ: Mapping[str, str], uid: int) -> str | None:
    """Return `$XDG_RUNTIME_DIR/gpulockd`, or None where that variable is unset or names another user's folder."""
    base = environ.get("XDG_RUNTIME_DIR")
    # After `sudo -E` or in a container the variable often names a folder that is another user's or is not there.
    return os.path.join(base, "gpulockd") if base and _owner(base) == uid else None


def fallback_runtime(uid: int) -> str:
    """Return the runtime folder of a user without a runtime directory of their own."""
    return f"/tmp/gpulockd-{uid}"


def runtime_candidates(environ: Mapping[str, str] | None = None, uid: int | None = None) -> tuple[tuple[str, str], ...]:
    """Return the (runtime folder, API socket) pairs in which a program looks for its daemon, best first.

    GPULOCKD_SOCKET is the only one where it is set; else the user's, the system's and the fallback folder.
    """
    env = os.environ if environ is None else environ
    user = os.getuid() if uid is None else uid
    named = env.get("GPULOCKD_SOCKET")
    if named:
        return (split_socket(named),)
    folders = (user_runtime(env, user), SYSTEM_RUNTIME, fallback_runtime(user))
    return tuple((folder, os.path.join(folder, API_SOCKET)) for folder in folders if folder is not None)


def find_runtime(environ: Mapping[str, str] | None = None, uid: int | None = None) -> tuple[str, str] | None:
    """Return the first (runtime folder, API socket) in which a daemon is or was, or None."""
    user = os.getuid() if uid is None else uid
    for folder, api_socket in runtime_candidates(environ, user):
        # Anyone can make a folder in /tmp, so there only our own counts.
        if folder == fallback_runtime(user) and _owner(folder) != user:
            continue
        marks = (api_socket, *(os.path.join(folder, name) for name in (GUARD_SOCKET, STORE_NOTE)))
        if any(os.path.exists(mark) for mark in marks):
            return folder, api_socket
    return None


def read_store_note(folder: str) -> dict[str, str] | None:
    """Return what `store.json` in `folder` says (`pool`, and `url` or `redis`), or None if there is none to read."""
    try:
        with open(os.path.join(folder, STORE_NOTE), encoding="utf-8") as file:
            note = json.load(file)
    except (OSError, ValueError):
        return None
    return {str(name): str(value) for name, value in note.items()} if isinstance(note, dict) else None


def store_seen_from(folder: str, url: str) -> str:
    """Return the URL of a daemon's store for who has its runtime folder at `folder`, which is another place in a
    container that mounts it elsewhere. The private store's socket lies in that folder; any other URL stays as it is.
    """
    beside, there = os.path.join(folder, STORE_SOCKET), url.removeprefix("unix://")
    if (read_store_note(folder) or {}).get("url") != url or there == url or not os.path.exists(beside):
        return url
    return url if os.path.exists(there) and os.path.samefile(there, beside) else f"unix://{beside}"


def _owner(path: str) -> int | None:
    """Return the uid that owns the folder `path`, or None if it is not a folder of its own."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_uid if os.path.isdir(path) else None
