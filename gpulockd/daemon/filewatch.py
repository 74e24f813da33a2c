"""Tells when a file may have changed, however it was written.

An editor writes another file and renames it, Kubernetes swaps a link two folders away, a container sees one file that
is mounted alone: so the folder of every link on the way to the file is watched, and the file itself. What the kernel
tells is a hint; the file's identity, time and size decide, and they are looked at now and then without any hint, for
file systems that tell nothing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import anyio.abc
import anyio.to_thread
import structlog

SETTLE_S = 0.03
"""How long a change may go on before it is looked at (in seconds)."""

EMPTY_S = 1.0
"""How long a file that has just become empty is taken for one that is being written (in seconds)."""

LOOK_S = 30.0
"""How often the file is looked at without a hint (in seconds)."""

MOST_LINKS = 40

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _ATTRIB = 0x8, 0x40, 0x80, 0x100, 0x200, 0x4
_MASK = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ATTRIB
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK

_log = structlog.get_logger(__name__)

Mark = tuple[int, int, int, int] | None
"""Device, inode, change time and size of a file; None: it is not there."""


class FileWatch:
    """Watches one path. `run` until cancelled; each change calls `changed`.

    :param changed: called after the file may have changed, once for all that happened meanwhile
    :param look_s: how often to look without a hint (in seconds)
    """

    def __init__(self, path: str, changed: Callable[[], Awaitable[object]], *, look_s: float = LOOK_S) -> None:
        self.path = os.path.abspath(path)
        self._changed = changed
        self._look_s = look_s
        self._mark = mark_of(self.path)

    def __repr__(self) -> str:
        return f"<FileWatch {self.path}>"

    def seen(self) -> None:
        """The file is about to be read: what it is now is no news any more."""
        self._mark = mark_of(self.path)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        inotify = await anyio.to_thread.run_sync(_Inotify)
        try:
            started = False
            while True:
                # In a thread: a file system that hangs must not stop the daemon.
                mark = await anyio.to_thread.run_sync(self._look, inotify, abandon_on_cancel=True)
                if not started:
                    started = True
                    task_status.started()
                if mark != self._mark:
                    if mark is not None and mark[-1] == 0:
                        await anyio.sleep(EMPTY_S)
                        mark = mark_of(self.path)
                    self._mark = mark
                    await self._changed()
                    continue
                with anyio.move_on_after(self._look_s):
                    await inotify.news()
                    await anyio.sleep(SETTLE_S)
                inotify.drain()
        finally:
            inotify.close()

    def _look(self, inotify: _Inotify) -> Mark:
        inotify.watch(ways_to(self.path))
        return mark_of(self.path)


def mark_of(path: str) -> Mark:
    """Return by what the file behind a path is told from another, or from itself before a change."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, max(found.st_mtime_ns, found.st_ctime_ns), found.st_size


def ways_to(path: str) -> tuple[str, ...]:
    """Return the file and the folders in which a change of a name can make the path another file."""
    found: dict[str, None] = {}
    todo = [path]
    for _ in range(MOST_LINKS):
        if not todo:
            break
        step = todo.pop()
        while step != os.path.dirname(step):
            found[os.path.dirname(step)] = None
            with suppress(OSError):
                target = os.path.join(os.path.dirname(step), os.readlink(step))
                todo.append(os.path.normpath(target))
            step = os.path.dirname(step)
            if not _leads_through_link(step):
                break
    found[os.path.realpath(path)] = None
    return tuple(way for way in found if os.path.exists(way))


def _leads_through_link(folder: str) -> bool:
    return os.path.realpath(folder) != folder


class _Inotify:
    """The kernel's watch on names; without one (no descriptors left) only the slow look is left."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(_FLAGS))
        if self._fd < 0:
            why = os.strerror(ctypes.get_errno())
            _log.warning("config.watch_slow", message=f"inotify cannot be used ({why}): the file is looked at slowly")

    def watch(self, paths: tuple[str, ...]) -> None:
        """Watch these as well; a path that is watched already costs nothing."""
        if self._fd < 0:
            return
        for path in paths:
            self._libc.inotify_add_watch(self._fd, os.fsencode(path), _MASK)

    async def news(self) -> None:
        """Return when something has happened."""
        if self._fd < 0:
            await anyio.sleep_forever()
        await anyio.wait_readable(self._fd)

    def drain(self) -> None:
        """Forget what has been told: the file itself is looked at."""
        with suppress(BlockingIOError, OSError):
            while self._fd >= 0 and os.read(self._fd, 65536):
                continue

    def close(self) -> None:
        """Watch no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
