"""Whether one process descends from another, as the kernel shows it now."""

from __future__ import annotations

from gpulockd.hardware.processes.identity import Process, stat_of

MOST_ANCESTORS = 64


def descends(process: Process, ancestor: Process) -> bool:
    """Whether `process` is `ancestor` or one of its descendants whose parents all live."""
    if process == ancestor:
        return True
    stat = stat_of(process.pid)
    if stat is None or stat.process != process:
        return False
    for _ in range(MOST_ANCESTORS):
        parent = stat_of(stat.parent) if stat.parent else None
        # A parent that is younger than its child has got the pid of one that is gone.
        if parent is None or parent.started_ticks > stat.started_ticks:
            return False
        if parent.process == ancestor:
            return True
        stat = parent
    return False
