"""What the private store leaves on disk about itself, and the judgement whether it has lost anything.

A store is *complete* when nobody alive can know of a lock that the store does not. The ledger opens at once on a
complete store and waits for one session's time on any other, so in doubt the answer here is no.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from gpulockd.daemon.folders import write_whole

USED = "store-used"
DIRTY = "store.dirty"
BOOT_ID = "boot_id"
LOADED = "loaded"


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """What the folders say before the store starts.

    `boot` is this boot's id; `used_boot` the boot in which this runtime folder last had a store; `file_boot` the
    boot in which the append-only file was last written; `has_file` whether there is one; `dirty` whether the store
    was failing to write it.
    """

    boot: str
    used_boot: str | None
    file_boot: str | None
    has_file: bool
    dirty: bool


def judge(marks: Marks, *, whole: bool) -> bool:
    """Return whether a store that was started on `marks` is complete; `whole` says that its file was not torn."""
    if not marks.has_file:
        return marks.boot not in (marks.used_boot, marks.file_boot)
    if marks.file_boot is None:
        return False
    # Nobody who held a lock in an earlier boot lives.
    return marks.file_boot != marks.boot or (whole and not marks.dirty)


def is_fresh(marks: Marks) -> bool:
    """Return whether nobody can have used a store on `marks` since this boot began."""
    if not marks.has_file:
        return marks.boot not in (marks.used_boot, marks.file_boot)
    return marks.file_boot is not None and marks.file_boot != marks.boot


def read(runtime: str, store: str) -> Marks:
    """Read the marks in the runtime folder and in the store's folder."""
    return Marks(
        boot=_boot_id(),
        used_boot=_text(os.path.join(runtime, USED)),
        file_boot=_text(os.path.join(store, BOOT_ID)),
        has_file=_has_file(store),
        dirty=any(os.path.exists(path) for path in _dirty_paths(runtime, store)),
    )


def set_used(runtime: str, store: str) -> None:
    """Say that a store of this boot uses both folders. This comes before its start: a daemon that is killed in
    between must not leave a store that the next one takes for unused."""
    write_whole(os.path.join(store, BOOT_ID), _boot_id())
    write_whole(os.path.join(runtime, USED), _boot_id())


def set_dirty(runtime: str, store: str, dirty: bool) -> None:
    """Set or take away the mark that the file on disk lacks writes that were answered."""
    for path in _dirty_paths(runtime, store):
        # The disk that refuses the store's writes may refuse this one too; the other folder is mostly in memory.
        with suppress(OSError):
            Path(path).touch(0o600) if dirty else Path(path).unlink(missing_ok=True)


def set_loaded(store: str, run_id: str, complete: bool) -> None:
    """Remember the judgement on the server process `run_id` for a daemon that adopts it."""
    write_whole(os.path.join(store, LOADED), f"{run_id} {'complete' if complete else 'lossy'}")


def was_complete(store: str, run_id: str) -> bool:
    """Return whether the server process `run_id` was judged complete; no is also the answer if nobody judged."""
    return _text(os.path.join(store, LOADED)) == f"{run_id} complete"


def _dirty_paths(runtime: str, store: str) -> tuple[str, str]:
    return os.path.join(runtime, DIRTY), os.path.join(store, DIRTY)


def _has_file(store: str) -> bool:
    folder = Path(store, "appendonlydir")
    return folder.is_dir() and any(folder.iterdir())


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
