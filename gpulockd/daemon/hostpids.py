"""The pid of a process on this host, whatever number it has in a container of its own."""

from __future__ import annotations

from functools import lru_cache

from gpulockd.client.whoami import counts_alike
from gpulockd.daemon.callers import Callers
from gpulockd.hardware.processes.identity import HiddenProcess, identify
from gpulockd.hardware.processes.identity import Process as HostProcess
from gpulockd.model import Process


class HostPids:
    """Tells the host's pid of a session's process, by the guard or by what the process says of itself."""

    def __init__(self, callers: Callers, boot_id: str) -> None:
        """:param boot_id: of this host, as its programs say it"""
        self._callers = callers
        self._boot_id = boot_id

    def __call__(self, session: str, process: Process) -> int | None:
        """Return the pid as this daemon sees it, None if it does not know."""
        known = self._callers.process(session)
        if known is not None:
            return known.pid
        if process.boot_id == self._boot_id and is_of_host(process):
            return process.pid
        return None


def is_of_host(process: Process) -> bool:
    """Whether the number that a process calls itself is, or was until its death, the host's.

    Who lives in a pid namespace of its own is not found under its number either, and is not dead for that.
    """
    try:
        is_seen = _is_seen(process.pid, process.started_ticks)
    except (HiddenProcess, OSError):
        return False  # that pid lives, and the kernel does not say whose it is
    return process.started_ticks > 0 and (is_seen or counts_alike(process))


@lru_cache(maxsize=4096)
def _is_seen(pid: int, started_ticks: int) -> bool:
    """Whether a process was found under these numbers, which it keeps for its life."""
    return identify(pid) == HostProcess(pid, started_ticks)
