"""The daemon's two folders: runtime (sockets, gone with the boot) and state (what must stay), one daemon per folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from gpulockd import places
from gpulockd.errors import ConfigError

OWN = "folders and a port of its own: --socket DIR --state-dir DIR --listen HOST:PORT (GPULOCKD_SOCKET=DIR reaches it)"
"""What a second daemon of a host needs: all of it at once, so that nobody learns of it error by error."""


class Folders(msgspec.Struct, frozen=True, kw_only=True):
    """Where this daemon's files are."""

    runtime: str
    state: str
    api_socket: str

    @property
    def guard_socket(self) -> str:
        """The socket of hello, admit and leave."""
        return os.path.join(self.runtime, places.GUARD_SOCKET)

    @property
    def store_socket(self) -> str:
        """The socket of the private store."""
        return os.path.join(self.runtime, places.STORE_SOCKET)

    @property
    def store_note(self) -> str:
        """The file that tells clients pool and store while the daemon is down."""
        return os.path.join(self.runtime, places.STORE_NOTE)

    @property
    def store_folder(self) -> str:
        """The folder of the private store's append-only file."""
        return os.path.join(self.state, "store")

    @property
    def real_store_folder(self) -> str:
        """The same without symbolic links, as the store itself names it."""
        return os.path.realpath(self.store_folder)


def resolve(
    socket: str | None = None,
    state_dir: str | None = None,
    environ: Mapping[str, str] | None = None,
    uid: int | None = None,
) -> Folders:
    """Return the folders that flags, environment and user name; nothing is made yet.

    :raises ConfigError: if a socket's path would be longer than the kernel allows
    """
    env = os.environ if environ is None else environ
    user = os.getuid() if uid is None else uid
    runtime, api_socket = _runtime(socket, env, user)
    folders = Folders(runtime=runtime, state=_state(state_dir, env, user), api_socket=api_socket)
    for path in (folders.api_socket, folders.guard_socket, folders.store_socket):
        places.check_socket_path(path)
    return folders


def _runtime(socket: str | None, env: Mapping[str, str], uid: int) -> tuple[str, str]:
    named = socket or env.get("GPULOCKD_SOCKET")
    if named:
        return places.split_socket(named)
    folder = (
        _first(env.get("RUNTIME_DIRECTORY"))
        or places.user_runtime(env, uid)
        or (places.SYSTEM_RUNTIME if uid == 0 else places.fallback_runtime(uid))
    )
    return folder, os.path.join(folder, places.API_SOCKET)


def _state(state_dir: str | None, env: Mapping[str, str], uid: int) -> str:
    named = state_dir or _first(env.get("STATE_DIRECTORY"))
    if named:
        return os.path.abspath(os.path.expanduser(named))
    if env.get("XDG_STATE_HOME"):
        return os.path.join(env["XDG_STATE_HOME"], "gpulockd")
    if uid == 0:
        return "/var/lib/gpulockd"
    return os.path.join(env.get("HOME") or os.path.expanduser("~"), ".local/state/gpulockd")


def _first(folders: str | None) -> str | None:
    """Return the first of the folders that systemd lists with colons."""
    return folders.split(":")[0] if folders else None


def prepare(folders: Folders) -> None:
    """Make the folders where they are missing, and refuse those that others could write to.

    :raises ConfigError: if a folder cannot be made or is not safe
    """
    # Root's folder is open for looking, since programs of all users search it; each socket has its own permissions.
    _make(folders.runtime, 0o755 if folders.runtime == places.SYSTEM_RUNTIME else 0o700, "--socket")
    _make(folders.state, 0o700, "--state-dir")


def _make(folder: str, mode: int, flag: str) -> None:
    try:
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(folder, mode)
        found = os.lstat(folder)
    except OSError as wrong:
        raise ConfigError(f"{folder}: cannot make this folder ({wrong.strerror}); choose another with {flag}") from None
    # In /tmp another user may have been first.
    if folder == places.fallback_runtime(os.getuid()):
        loose = stat.S_IMODE(found.st_mode) & 0o077
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or loose:
            raise ConfigError(f"{folder}: not a folder of this user alone (mode 0700); choose another with {flag}")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: not a folder that this user can write to; choose another with {flag}")


def publish_store(folders: Folders, pool: str, url: str | None) -> None:
    """Write `store.json`, by which clients find pool and store while the daemon is down; a Redis URL may hold a
    password, so of an external store (`url` None) it says only that it is external."""
    note = {"pool": pool, "url": url} if url else {"pool": pool, "redis": "external"}
    write_whole(folders.store_note, json.dumps(note), 0o644)


def withdraw_store(folders: Folders) -> None:
    """Remove what tells programs of the private store: it has stopped, and nobody shall look for it."""
    for path in (folders.store_note, folders.store_socket):
        with suppress(OSError):
            os.unlink(path)


def write_whole(path: str, text: str, mode: int = 0o600) -> None:
    """Write a small file so that a reader sees the old text or the new one, never a part."""
    beside = f"{path}.new"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        file.write(text + "\n")
    os.replace(beside, path)


@contextmanager
def locked(folders: Folders) -> Iterator[None]:
    """Hold both folders for this daemon while the block runs; the kernel lets go when the process ends.

    :raises ConfigError: if another daemon has one of them, with its pid
    """
    with ExitStack() as stack:
        for folder, noun in {folders.runtime: "runtime folder", folders.state: "state folder"}.items():
            stack.enter_context(_lock(folder, noun))
        yield


@contextmanager
def _lock(folder: str, noun: str) -> Iterator[None]:
    path = os.path.join(folder, places.DAEMON_LOCK)
    # The file is never removed: a third daemon could lock a new one of the same name beside the old one.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as taken:
            if taken.errno != errno.EWOULDBLOCK:
                raise
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                f"another daemon (pid {pid}) uses the {noun} {folder}; stop it, or give this one {OWN}"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
