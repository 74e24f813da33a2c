"""Where backups lie: their names, which there are, and which are old enough to go."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpulockd.cli.backups import pack
from gpulockd.cli.talk import NOT_PERMITTED, CommandError

_NAME = re.compile(r"gpulockd-(?P<pool>[A-Za-z0-9_.-]{1,64})-(?P<at>\d{8}T\d{6}Z)(?:-(?P<nth>\d+))?\.jsonl\.gz")


@dataclass(frozen=True)
class Kept:
    """A backup in the folder; `trouble` says why it cannot be used, "" if it can."""

    path: str
    size: int
    head: dict[str, Any]
    trouble: str = ""


def new_path(folder: str, pool: str) -> str:
    """The path of a new backup of a pool, which sorts behind all that there are."""
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    known = [match for path in names(folder, pool) if (match := _NAME.fullmatch(os.path.basename(path)))]
    number = max((int(match["nth"] or 0) + 1 for match in known if match["at"] == at), default=0)
    return os.path.join(folder, f"gpulockd-{pool}-{at}{f'-{number}' if number else ''}.jsonl.gz")


def prepare(folder: str) -> None:
    """Make the folder, for its owner alone.

    :raises CommandError: if it cannot be made
    """
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
    except OSError as refused:
        what = f"cannot make the folder {folder} ({refused.strerror})"
        raise CommandError(
            what, "run it as the daemon's user, or name a file: gpulockd backup FILE", NOT_PERMITTED
        ) from None


def names(folder: str, pool: str = "") -> list[str]:
    """The paths of the backups, the oldest first; of one pool, if it is named."""
    try:
        found = [match for name in os.listdir(folder) if (match := _NAME.fullmatch(name))]
    except FileNotFoundError:
        return []
    except OSError as refused:
        what = f"cannot look into {folder} ({refused.strerror})"
        raise CommandError(what, "run it as the daemon's user or as root", NOT_PERMITTED) from None
    own = [match for match in found if pool in ("", match["pool"])]
    return [os.path.join(folder, match[0]) for match in sorted(own, key=lambda m: (m["at"], int(m["nth"] or 0), m[0]))]


def kept(folder: str) -> list[Kept]:
    """What is in the folder, the newest first, each read to its end."""
    return [_looked_at(path) for path in reversed(names(folder))]


def drop_old(folder: str, pool: str, most: int) -> list[str]:
    """Remove the oldest backups of a pool beyond `most`; return their paths."""
    gone = names(folder, pool)[:-most]
    for path in gone:
        with suppress(FileNotFoundError):
            os.unlink(path)
    return gone


def _looked_at(path: str) -> Kept:
    size = 0
    try:
        size = os.stat(path).st_size
        return Kept(path, size, pack.read(path).head)
    except OSError as wrong:
        return Kept(path, size, {}, str(wrong.strerror))
    except CommandError as wrong:
        return Kept(path, size, {}, wrong.what.removeprefix(f"{path}: "))
