"""The private store of a daemon that was killed: nobody else would end it."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from gpulockd import places
from gpulockd.daemon.folders import Folders, locked
from gpulockd.daemon.storesocket import StoreSocket
from gpulockd.errors import ConfigError

ENDS_WITHIN_S = 5.0


def stop_store(folders: Folders) -> None:
    """End the store of these folders with its file written, unless another daemon has the folders by now."""
    with suppress(ConfigError, OSError), locked(folders):
        note = places.read_store_note(folders.runtime) or {}
        if note.get("url") != f"unix://{folders.store_socket}":
            return  # the daemon had another store
        pid = StoreSocket(folders.store_socket).server_pid()
        if pid > 0:
            _end(pid)


def _end(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(pidfd, number)
            if select.select([pidfd], [], [], ENDS_WITHIN_S)[0]:
                return
    finally:
        os.close(pidfd)
