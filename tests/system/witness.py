"""The physical witness: what a worker does on a gpu is a lock of the kernel on a file, which no ledger can talk away.

A whole card is `flock(LOCK_EX)` on the gpu's file. A memory budget is `flock(LOCK_SH)` on it and one locked byte a GiB
of a second file, so that budgets that do not fit cannot be locked. The kernel drops both when a process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

CARD_GIB = 24
"""Memory of every simulated card of these tests (in GiB)."""


class Overlap(Exception):
    """Somebody else is on that gpu: the lock has failed."""


@contextlib.contextmanager
def using(folder: Path, gpus: list[str], memory_gib: int = 0) -> Iterator[None]:
    """Be on these gpus, with whole cards or with `memory_gib` GiB of each.

    :raises Overlap: if another is on one of them
    """
    with contextlib.ExitStack() as held:
        for gpu in gpus:
            file = _opened(held, folder / f"{gpu}.witness")
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if memory_gib else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Overlap(gpu) from None
            if memory_gib:
                _take_memory(_opened(held, folder / f"{gpu}.memory"), memory_gib, gpu)
        yield


def _opened(held: contextlib.ExitStack, path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    held.callback(os.close, file)
    return file


def _take_memory(file: int, memory_gib: int, gpu: str) -> None:
    """Lock any `memory_gib` bytes of the file. A busy byte may be free at a second look, so there are three."""
    taken: set[int] = set()
    for at in [*range(CARD_GIB)] * 3:
        if len(taken) < memory_gib and at not in taken and _lock_byte(file, at):
            taken.add(at)
    if len(taken) < memory_gib:
        raise Overlap(gpu)


def _lock_byte(file: int, at: int) -> bool:
    """Whether the byte was free and is now locked by this open file, not by this process: tasks do not share it."""
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):
        return False
    return True
