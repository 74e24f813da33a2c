"""What this host keeps of the fleet's configuration in a file, for a store that has lost it and for its own start."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from gpulockd.ledger.revisions import AuditLine, Revision

FILE = "configuration.json"
MOST_REVISIONS = 50
MOST_AUDITED = 1000

_log = structlog.get_logger(__name__)


class ConfigKept(msgspec.Struct, frozen=True, kw_only=True):
    """The last known state: the number in force, the last stable one, the live document, and the latest revisions.

    `bases` is what file and environment of `pool` said, by revision; the latest revision comes first. `audits` are the
    last lines of the audit, the latest last; `store` names the store (no secret in it).
    """

    current: int
    stable: int | None = None
    live: dict[str, Any] = {}
    revisions: tuple[Revision, ...] = ()
    pool: str = ""
    bases: dict[int, dict[str, Any]] = {}
    audits: tuple[AuditLine, ...] = ()
    store: str = ""


class KeptFile:
    """The file in the daemon's state folder; `value` is what it holds, None: nothing that can be read.

    A copy of another store is not used, and put aside at the first write: a daemon that moves to another fleet brings
    nothing along.
    """

    def __init__(self, folder: str, store: str = "") -> None:
        """Read it.

        :param store: the name of the store that this daemon uses
        """
        self._path = os.path.join(folder, FILE)
        self._store = store
        self._is_anothers = False
        self.value = self._own(self._read())

    def __repr__(self) -> str:
        return f"<KeptFile {self._path} {self.value.current if self.value else '-'}>"

    def _read(self) -> ConfigKept | None:
        try:
            with open(self._path, "rb") as file:
                return msgspec.json.decode(file.read(), type=ConfigKept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as wrong:
            _log.warning("config.kept_unreadable", message=f"{self._path} cannot be read and is written anew: {wrong}")
            return None

    def _own(self, found: ConfigKept | None) -> ConfigKept | None:
        if found is None or found.store in ("", self._store):
            return found
        self._is_anothers = True
        text = f"the kept configuration is that of the store {found.store}, not of {self._store}: it is not used"
        _log.warning("config.kept_of_another_store", message=text)
        return None

    def _put_aside(self) -> None:
        aside = f"{self._path}.of-another-store"
        with suppress(OSError):
            os.replace(self._path, aside)
        _log.warning("config.put_aside", message=f"the configuration of the other store is now {aside}")
        self._is_anothers = False

    async def keep(self, value: ConfigKept) -> None:
        """Write the file, whole or not at all; nothing if it holds that."""
        value = msgspec.structs.replace(value, store=self._store)
        if value != self.value:
            self.value = value
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._write, msgspec.json.encode(value))

    def _write(self, content: bytes) -> None:
        if self._is_anothers:  # only now: a store that answers had its word, so its URL is no slip of the hand
            self._put_aside()
        fresh = f"{self._path}.new"
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._path)
        except OSError as trouble:
            _log.warning("config.unkept", message=f"the configuration is not kept beside the store: {trouble}")
