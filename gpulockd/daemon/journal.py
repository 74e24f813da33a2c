"""The guard's record on disk: one line for each lease that was let in or is over, written before anybody is told.

It survives the daemon's own death; a write reaches the kernel, which is enough: who survives a power cut is nobody.
A line that was cut short was never answered, so it is passed over. A file that says nothing sensible is kept aside.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from typing import Literal

import msgspec
import structlog

from gpulockd.daemon.fence import Fence, Lease
from gpulockd.errors import GpuLockError

MOST_LINES = 4096
"""After so many lines the record is written anew."""

MOST_BYTES = 4 << 20
"""Likewise after so many bytes more than it then needs twice."""

_log = structlog.get_logger(__name__)


class RecordUnwritable(GpuLockError):
    """The guard's record cannot be written, so nobody new is let in: make room in the state folder."""


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One change. `is_` the lease as it is now on its gpus; `over` its end (`never`: nobody was granted
    it); `marks` the highest tokens of each gpu."""

    boot_id: str = ""
    is_: Lease | None = msgspec.field(name="is", default=None)
    over: str = ""
    never: bool = False
    marks: dict[str, tuple[int, int]] = {}


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


class Journal:
    """The record of one pool's guard in its state folder."""

    def __init__(self, path: str, boot_id: str) -> None:
        self.path = path
        self.boot_id = boot_id
        self._lines = 0
        self._size = self._most_bytes = 0
        self._file = -1
        self._fence: Fence | None = None

    def __repr__(self) -> str:
        return f"<Journal {self.path} {self._lines} lines>"

    def load(self) -> tuple[Fence, Literal["fresh", "complete", "doubtful"]]:
        """Return what was recorded in this boot: all of it, nothing ever, or what could be read of a damaged file.

        :raises RecordUnwritable: if the state folder cannot be written
        """
        fence = self._fence = Fence()
        found = self._read(fence)
        self._rewrite()
        return fence, found

    def _read(self, fence: Fence) -> Literal["fresh", "complete", "doubtful"]:
        try:
            with open(self.path, "rb") as file:
                rows = file.read().split(b"\n")
        except FileNotFoundError:
            return "fresh"
        except OSError as wrong:
            raise RecordUnwritable(f"{self.path}: {wrong.strerror}; correct its permissions") from None
        doubtful = False
        boot_id = self.boot_id
        lines = [_checked(row) for row in rows]
        _mark_fresh(lines)
        for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
            if line is None:
                # The last line may have been cut short by a death; no other.
                doubtful = doubtful or (bool(row) and number < len(rows) - 1)
                continue
            boot_id = line.boot_id or boot_id
            _take(fence, line)
        if boot_id != self.boot_id:
            fence.leases.clear()  # those processes are dead; their tokens stand for ever
            doubtful = False
        if doubtful:
            aside = f"{self.path}.damaged"
            with suppress(OSError):
                os.replace(self.path, aside)
            _log.error("guard.record_damaged", message=f"the guard's record is damaged; a copy stays in {aside}")
        return "doubtful" if doubtful else "complete"

    def entered(self, lease: Lease) -> None:
        """Record that a lease is on its gpus, or has changed.

        :raises RecordUnwritable: then it must not be let in
        """
        self._write(Line(is_=lease))

    def over(self, lease: Lease, *, never: bool = False) -> None:
        """Record that a lease is over, or was never granted; a disk that is full loses only time."""
        try:
            self._write(Line(over=lease.id, never=never))
        except RecordUnwritable as full:
            _log.error("guard.record_unwritable", message=full.message)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, line: Line) -> None:
        row = _row(line)
        try:
            if self._file < 0 or self._lines >= MOST_LINES or self._size >= self._most_bytes:
                self._rewrite()
            if os.write(self._file, row) < len(row):
                os.ftruncate(self._file, self._size)
                raise OSError(28, "No space left on device")
        except OSError as wrong:
            raise RecordUnwritable(
                f"{self.path}: {wrong.strerror}; nobody new is let in until it can be written"
            ) from None
        self._lines += 1
        self._size += len(row)

    def _rewrite(self) -> None:
        """Write the record as it is now, beside the old one, and put it in its place."""
        assert self._fence is not None
        beside = f"{self.path}.new"
        rows = [_row(Line(boot_id=self.boot_id, marks=self._fence.marks))]
        rows += [_row(Line(is_=lease)) for lease in self._fence.leases.values()]
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                data = b"".join(rows)
                if os.write(descriptor, data) < len(data):
                    raise OSError(28, "No space left on device")
                os.replace(beside, self.path)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as wrong:
            raise RecordUnwritable(f"{self.path}: {wrong.strerror}; make room in the state folder") from None
        self.close()
        self._file, self._lines, self._size = descriptor, len(rows), len(data)
        self._most_bytes = 2 * len(data) + MOST_BYTES


def _row(line: Line) -> bytes:
    body = _encode(line)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _checked(row: bytes) -> Line | None:
    """The line, or None if it is not whole."""
    check, _, body = row.partition(b" ")
    try:
        return _decode(body) if int(check, 16) == zlib.crc32(body) else None
    except (ValueError, msgspec.MsgspecError):
        return None


def _mark_fresh(lines: list[Line | None]) -> None:
    """What was never granted leaves no token: an earlier version has not written that it stood on its own word."""
    never: dict[str, bool] = {}
    for line in reversed(lines):
        if line is not None and line.over:
            never[line.over] = line.never
        if line is not None and line.is_ is not None and never.get(line.is_.id):
            line.is_.fresh = True


def _take(fence: Fence, line: Line) -> None:
    for gpu, (exclusive, any_) in line.marks.items():
        old = fence.marks.get(gpu, (0, 0))
        fence.marks[gpu] = (max(old[0], exclusive), max(old[1], any_))
    if line.is_ is not None:
        fence.enter(line.is_)
    if line.over:
        fence.remove(line.over, never=line.never)
