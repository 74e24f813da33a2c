"""The pid of a process on this host, whatever number it has in a container of its own."""

from __future__ import annotations

from functools import lru_cache

from gpulockd.daemon.callers import Callers
from gpulockd.hardware.processes.identity import HiddenProcess, identify
from gpulockd.hardware.processes.identity import Process as HostProcess
from gpulockd.model import Process


class HostPids:
    """Tells the host's pid of a session's process, by the guard or by the start time that the kernel shows."""

    def __init__(self, callers: Callers, boot_id: str) -> None:
        """:param boot_id: of this host, as its programs say it"""
        self._callers = callers
        self._boot_id = boot_id

    def __call__(self, session: str, process: Process) -> int | None:
        """Return the pid as this daemon sees it, None if it does not know."""
        known = self._callers.process(session)
        if known is not None:
            return known.pid
        if process.boot_id == self._boot_id and _is_of_host(process.pid, process.started_ticks):
            return process.pid
        return None


@lru_cache(maxsize=4096)
def _is_of_host(pid: int, started_ticks: int) -> bool:
    """Whether the number that a process calls itself is the host's; a process keeps both numbers for its life."""
    try:
        return bool(started_ticks) and identify(pid) == HostProcess(pid, started_ticks)
    except (HiddenProcess, OSError):
        return False
