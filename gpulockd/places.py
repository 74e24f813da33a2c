"""Where a daemon's files lie, for all who look for them: the runtime folder, its sockets and its note about the store.

The same rules serve the daemon that makes the folder and the programs that only search it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from collections.abc import Mapping
from importlib import import_module

from gpulockd.errors import ConfigError

API_SOCKET = "api.sock"
GUARD_SOCKET = "guard.sock"
STORE_SOCKET = "store.sock"
STORE_NOTE = "store.json"
DAEMON_LOCK = "daemon.lock"

SYSTEM_RUNTIME = "/run/gpulockd"

LONGEST_SOCKET_PATH = 100
"""The kernel takes 107 bytes; the rest is room for the temporary names that servers bind first."""

_TAKEN = frozenset({0, errno.EAGAIN})
_CLOSED = frozenset({errno.EACCES, errno.EPERM})


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
    if not base or _owner(base) != uid:
        return None
    folder = os.path.join(base, "gpulockd")
    # Some containers say XDG_RUNTIME_DIR=/tmp, where anyone may have made it.
    return folder if _owner(folder) in (None, uid, 0) else None


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
    """Return the (runtime folder, API socket) of the daemon that all programs and commands of a user use, or None.

    It is the first in which somebody listens, or which is closed to this user: there a daemon may be, and two that
    give out the same GPUs are worse than an error. Else it is the first with files of a daemon that is down.
    """
    user = os.getuid() if uid is None else uid
    found = [place for place in runtime_candidates(environ, user) if _is_safe(place[0], user) and _is_used(*place)]
    if len(found) > 1:
        return next((place for place in found if is_answered(*place)), found[0])
    return found[0] if found else None


def is_answered(folder: str, api_socket: str) -> bool:
    """Whether a daemon listens in `folder`, or its store while it is away; true as well where this user may not knock.

    A closed store is no sign: the kernel says the same of one that nobody listens on. Nor is a closed door beside one
    that is open to this user and has nobody behind it: both are one daemon's.
    """
    doors = {knock(api_socket), knock(os.path.join(folder, GUARD_SOCKET))}
    if errno.ECONNREFUSED not in doors and not doors.isdisjoint(_CLOSED):
        return True
    return not doors.isdisjoint(_TAKEN) or knock(os.path.join(folder, STORE_SOCKET)) in _TAKEN


def knock(path: str) -> int:
    """Try a unix socket without waiting: 0 if somebody listens there (EAGAIN: and many want in), else the errno."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
        tried.setblocking(False)
        try:
            return tried.connect_ex(path)
        except OSError:  # of a path that no socket can have
            return errno.ENAMETOOLONG


def is_closed(path: str) -> bool:
    """Whether the socket `path` is there, or may be, and this user may not use it."""
    return knock(path) in _CLOSED


def is_there(path: str) -> bool:
    """Whether `path` exists, or lies where this user may not look."""
    try:
        os.stat(path)
    except OSError as away:
        return away.errno in _CLOSED
    return True


def let_in(path: str) -> str:
    """Return as whom a program may use a closed socket: "as root", "as ann or as root, or join the group …"."""
    needed, name = stat.S_IWGRP, os.path.abspath(path)
    found = _stat(name)
    while found is None and name != "/":
        # The innermost folder that can be seen is the one that shuts.
        needed, name = stat.S_IXGRP, os.path.dirname(name)
        found = _stat(name)
    ways = "as root" if found is None or found.st_uid == 0 else f"as {_name('pwd', found.st_uid)} or as root"
    if found is None or not found.st_mode & needed or found.st_gid == 0:
        return ways
    group = _name("grp", found.st_gid)
    joining = f"usermod -aG {group} USER, then log in again; docker: --group-add {found.st_gid}"
    return f"{ways}, or join the group {group} ({joining})"


def _is_safe(folder: str, uid: int) -> bool:
    """Whether nobody else can have made `folder`: anyone may make one in /tmp, so there only our own counts."""
    if folder != fallback_runtime(uid):
        return True
    found = _stat(folder, follow=False)
    return found is not None and stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022


def _is_used(folder: str, api_socket: str) -> bool:
    """Whether a daemon is or was in `folder`, or nobody can tell."""
    marks = (api_socket, *(os.path.join(folder, name) for name in (GUARD_SOCKET, STORE_NOTE)))
    return any(is_there(mark) for mark in marks)


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
    found = _stat(path, follow=False)
    return found.st_uid if found is not None and os.path.isdir(path) else None


def _stat(path: str, *, follow: bool = True) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError:
        return None


def _name(table: str, number: int) -> str:
    """Return the name of a user (`pwd`) or a group (`grp`), or its number; the tables are loaded for an error only."""
    module = import_module(table)
    try:
        found = module.getpwuid(number) if table == "pwd" else module.getgrgid(number)
    except KeyError:
        return str(number)
    return str(found[0])
