"""The file of a backup: JSON lines in gzip, one object a line, so that `zcat` shows it.

The first line says what it is, the last one how many lines there are and the SHA-256 of all before it. A file that is
cut, damaged, foreign, or of a later format is refused as a whole.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gpulockd.cli.backups import parts
from gpulockd.cli.talk import NEGATIVE, NOT_PERMITTED, USAGE, CommandError

Record = dict[str, Any]

FORMAT = 1
NAMED = "gpulockd_backup"
MOST_BYTES = 1 << 30
"""A file that holds more is none of ours."""


@dataclass
class Backup:
    """What a backup has: its first line, and the lines of each part."""

    path: str
    head: Record
    parts: dict[str, list[Record]] = field(default_factory=dict)

    def all(self, part: str) -> list[Record]:
        """The lines of a part."""
        return self.parts.get(part, [])

    def one(self, part: str) -> Record | None:
        """The only line of a part; None if it has none."""
        found = self.all(part)
        return found[0] if found else None


def packed(head: Record, lines: Iterable[Record]) -> bytes:
    """The bytes of a backup; `head` needs no format, and each line names its `part`."""
    digest, count, out = hashlib.sha256(), 0, io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", filename="", mtime=0) as packing:
        for line in ({NAMED: FORMAT, **head}, *lines):
            text = _line(line)
            digest.update(text)
            packing.write(text)
            count += 1
        packing.write(_line({"end": True, "lines": count, "sha256": digest.hexdigest()}))
    return out.getvalue()


def read(path: str) -> Backup:
    """Read a backup.

    :raises CommandError: if it cannot be read, is cut, damaged, no backup, or of a later gpulockd
    """
    first, *rest = _lines(path)
    head = _object(path, first)
    if NAMED not in head:
        raise _foreign(path)
    made = head[NAMED]
    if not isinstance(made, int) or isinstance(made, bool) or made < 1:
        raise _foreign(path)
    if made > FORMAT:
        by = head.get("made_by", "a later one")
        what = f"{path}: format {made} of gpulockd {by}, and this one reads up to {FORMAT}"
        raise CommandError(what, "update gpulockd, and try again", USAGE)
    if not rest:
        raise _torn(path, "it ends after its first line")
    _check_end(path, [first, *rest[:-1]], _object(path, rest[-1]))
    backup = Backup(path, head)
    for number, text in enumerate([first, *rest[:-1]], 1):
        try:
            if number == 1:
                parts.head(text)
                continue
            part, line = parts.read(text)
        except ValueError as wrong:
            raise _malformed(path, number, str(wrong)) from None
        if part in parts.ONLY_ONE and part in backup.parts:
            raise _malformed(path, number, f"it has a second {part!r}")
        backup.parts.setdefault(part, []).append(line)
    return backup


def keep(path: str, content: bytes) -> None:
    """Write a file of mode 0600, whole or not at all.

    :raises CommandError: if it cannot be written, or something else than a backup is there
    """
    if os.path.lexists(path) and not _is_ours(path):
        raise CommandError(f"{path}: it is there and is no backup; it stays", "choose another name", USAGE)
    folder = os.path.dirname(os.path.abspath(path))
    fresh = ""
    try:
        descriptor, fresh = tempfile.mkstemp(prefix=".backup-", suffix=".new", dir=folder)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        _sync(folder)
    except OSError as refused:
        if fresh:
            with suppress(OSError):
                os.unlink(fresh)
        code = NOT_PERMITTED if isinstance(refused, PermissionError) else NEGATIVE
        hint = "make room, or choose another place: gpulockd backup FILE"
        raise CommandError(f"cannot write {path} ({refused.strerror})", hint, code) from None


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_ours(path: str) -> bool:
    try:
        with _opened(path) as raw, gzip.GzipFile(fileobj=raw) as file:
            return file.read(len(NAMED) + 3) == f'{{"{NAMED}"'.encode()
    except (OSError, EOFError, zlib.error):
        return False


def _opened(path: str) -> io.BufferedReader:
    """Open a file that has its bytes; a pipe would be waited for, and a device has no end.

    :raises OSError: if it cannot be opened, or is something else
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(descriptor, "rb")


def _lines(path: str) -> list[bytes]:
    try:
        with _opened(path) as raw, gzip.GzipFile(fileobj=raw) as file:
            content = file.read(MOST_BYTES + 1)
    except PermissionError:
        raise CommandError(
            f"{path}: not permitted", "read it as the user that made it, or as root", NOT_PERMITTED
        ) from None
    except gzip.BadGzipFile as wrong:
        if "CRC" in str(wrong) or "length" in str(wrong):
            raise _torn(path, "its bytes were changed") from None
        raise _foreign(path) from None
    except EOFError:
        raise _torn(path, "its end is missing") from None
    except zlib.error:
        raise _torn(path, "its bytes were changed") from None
    except OSError as wrong:
        raise CommandError(
            f"{path}: {wrong.strerror}", "'gpulockd backup --list' names those there are", USAGE
        ) from None
    if len(content) > MOST_BYTES or not content:
        raise _foreign(path)
    return content.splitlines(keepends=True)


def _check_end(path: str, lines: list[bytes], end: Record) -> None:
    if end.get("end") is not True:
        raise _torn(path, "its last line is missing")
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    if end.get("lines") != len(lines) or end.get("sha256") != digest:
        raise _torn(path, "its checksum does not fit: a line was changed")


def _object(path: str, text: bytes) -> Record:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise _foreign(path) from None
    if not isinstance(found, dict):
        raise _foreign(path)
    return found


def _line(line: Record) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _foreign(path: str) -> CommandError:
    return CommandError(
        f"{path}: this is no backup of gpulockd", "'gpulockd backup --list' names those there are", USAGE
    )


def _malformed(path: str, number: int, why: str) -> CommandError:
    what = f"{path}, line {number}: this is nothing that gpulockd has written ({why[:200]})"
    return CommandError(what, "nothing was changed; 'gpulockd backup --list' names those that are whole", NEGATIVE)


def _torn(path: str, why: str) -> CommandError:
    hint = "nothing was changed; take another one: 'gpulockd backup --list'"
    return CommandError(f"{path}: this backup is damaged ({why})", hint, NEGATIVE)
