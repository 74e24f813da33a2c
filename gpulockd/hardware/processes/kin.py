"""Whether one process belongs to another: by descent, or because it was started with that one's lease."""

from __future__ import annotations

from contextlib import suppress

from gpulockd.hardware.processes.identity import Process, stat_of
from gpulockd.hardware.processes.table import read_file_of

MOST_ANCESTORS = 64


def is_kin(process: Process, ancestor: Process, lease: str) -> bool:
    """Whether `process` descends from `ancestor`, or had GPULOCKD_LEASE=`lease` in its first environment."""
    if process == ancestor:
        return True
    stat = stat_of(process.pid)
    if stat is None or stat.process != process:
        return False
    for _ in range(MOST_ANCESTORS):
        parent = stat_of(stat.parent) if stat.parent else None
        # A parent that is younger than its child has got the pid of one that is gone.
        if parent is None or parent.started_ticks > stat.started_ticks:
            break
        if parent.process == ancestor:
            return True
        stat = parent
    with suppress(OSError):
        return b"GPULOCKD_LEASE=" + lease.encode() in read_file_of(process, "environ").split(b"\0")
    return False
