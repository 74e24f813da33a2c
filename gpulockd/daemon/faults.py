"""The XIDs that stand, kept in a file: a restart of the daemon is no reset of a card, a reboot of the host is one."""

from __future__ import annotations

import os
from collections.abc import Mapping

import anyio
import anyio.to_thread
import msgspec
import structlog

_log = structlog.get_logger(__name__)


class _Record(msgspec.Struct, frozen=True):
    boot_id: str
    xids: dict[str, int]


class Faults:
    """`xids` (uuid -> XID) as the file had them; without a path nothing is kept.

    :param path: the file, in the daemon's state folder
    :param boot_id: of this boot; what another wrote is void
    """

    def __init__(self, path: str | None = None, boot_id: str = "") -> None:
        self.xids: dict[str, int] = {}
        self._path = path
        self._boot_id = boot_id

    def __repr__(self) -> str:
        return f"<Faults {self.xids}>"

    async def read(self) -> None:
        """Read the file; one that cannot be read says nothing."""
        if self._path is not None:
            self.xids = await anyio.to_thread.run_sync(self._read, self._path)

    def _read(self, path: str) -> dict[str, int]:
        try:
            with open(path, "rb") as file:
                record = msgspec.json.decode(file.read(), type=_Record)
        except (OSError, msgspec.MsgspecError):
            return {}
        return dict(record.xids) if record.boot_id == self._boot_id else {}

    async def write(self, xids: Mapping[str, int]) -> None:
        """Keep these, if they differ from what is kept."""
        if dict(xids) != self.xids:
            self.xids = dict(xids)
            if self._path is not None:
                await anyio.to_thread.run_sync(self._write, self._path)

    def _write(self, path: str) -> None:
        fresh = f"{path}.new"
        try:
            with open(fresh, "wb") as file:
                file.write(msgspec.json.encode(_Record(self._boot_id, self.xids)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except OSError as trouble:
            _log.warning("cards.faults_unwritten", message=f"what is wrong with cards is not kept: {trouble}")
