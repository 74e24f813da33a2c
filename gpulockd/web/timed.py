"""Leases that the daemon keeps outlive it: what the next one must know of them stands in a file before they are told.

Nobody else keeps them alive: those for a time have no process at all, and the process of the others knows nothing of
it. The file is of one boot only; the ledger ends at once what was held in an earlier one. The session of a lease for a
time lasts in the ledger until that is over, so a daemon may be away for any part of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

import msgspec
import structlog

from gpulockd.client.whoami import boot_id
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.model import Gpu, Job, Process

_log = structlog.get_logger(__name__)


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that the daemon keeps, for a time or (`ttl_s` None) as long as `process` lives.

    `until_s` and `granted_at` are seconds on CLOCK_BOOTTIME; `uid` is of who asked, -1 over TCP.
    """

    id: str
    token: int
    session: str
    of: str
    gpus: tuple[Gpu, ...]
    wants: str
    priority: int
    job: Job
    lock_timeout_ms: int
    process: Process
    uid: int
    ttl_s: float | None
    until_s: float
    granted_at: float
    stamp_ms: int | None


class _Written(msgspec.Struct, kw_only=True):
    """`leases` are those for a time: who knows of no others reads the file too, and leaves the rest out when it writes.

    `names_all`: nobody who leaves some out has written it.
    """

    boot_id: str
    leases: dict[str, Timed] = {}
    of_processes: dict[str, Timed] = {}
    names_all: bool = False


class TimedFile:
    """The leases that the daemon of one pool keeps, in a file that each change writes anew."""

    def __init__(self, state: str, pool: str) -> None:
        """:param state: the daemon's own folder"""
        self._path = os.path.join(state, f"timed-{pool}.json")
        self._written = self._read()

    def __repr__(self) -> str:
        return f"<TimedFile {len(self.all())} leases>"

    def all(self) -> tuple[Timed, ...]:
        """The leases that a daemon of this boot has noted, those whose time or process is over too."""
        return (*self._written.leases.values(), *self._written.of_processes.values())

    @property
    def names_all(self) -> bool:
        """Whether every lease that somebody was told of stands here; else those of processes may be missing."""
        return self._written.names_all

    def complete(self, leases: Iterable[Timed]) -> None:
        """Write the leases for processes that were missing: with them it names all."""
        self._written.of_processes |= {lease.id: lease for lease in leases}
        self._written.names_all = True
        with suppress(OSError):  # the next daemon finds them missing too
            self._write()

    def note(self, lease: Timed) -> None:
        """Write a lease, or what is new of it.

        :raises StoreUnavailable: if it cannot be written: nobody may be told then that it lasts
        """
        leases = self._written.of_processes if lease.ttl_s is None else self._written.leases
        before = leases.get(lease.id)
        leases[lease.id] = lease
        try:
            self._write()
        except OSError as full:
            if before is None:
                del leases[lease.id]
            else:
                leases[lease.id] = before
            raise StoreUnavailable(f"{self._path} cannot be written ({full.strerror}); make room there") from None

    def forget(self, id: str) -> None:
        """A lease has ended. Where that cannot be written, the next daemon finds it out."""
        found = self._written.leases.pop(id, None) or self._written.of_processes.pop(id, None)
        if found is not None:
            with suppress(OSError):
                self._write()

    def _read(self) -> _Written:
        nothing = _Written(boot_id=boot_id(), names_all=True)
        try:
            with open(self._path, "rb") as file:
                found = msgspec.json.decode(file.read(), type=_Written)
        except FileNotFoundError:
            return nothing
        except (OSError, msgspec.MsgspecError, GpuLockError) as wrong:
            _log.error(
                "timed.unreadable", message=f"{self._path}: the leases that are kept are not known any more: {wrong}"
            )
            return _Written(boot_id=nothing.boot_id)
        return found if found.boot_id == nothing.boot_id else nothing

    def _write(self) -> None:
        beside = self._path + ".new"
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(msgspec.json.encode(self._written))
        os.replace(beside, self._path)
