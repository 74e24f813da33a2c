"""The pidfds of those inside, in systemd's store: after a crash the next daemon has the very processes, not numbers.

A start time in clock ticks cannot tell two processes apart that had one pid within 10 ms; a pidfd can.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress

from gpulockd.daemon import fdstore
from gpulockd.daemon.fdstore import Passed
from gpulockd.hardware.processes.identity import HiddenProcess, Process, open_pidfd

_PREFIX = "process"


class Kept:
    """What systemd keeps for this daemon, and for the one before it. Without systemd it is empty and stays so."""

    def __init__(self, passed: Passed) -> None:
        """:param passed: what came with this start"""
        self.is_heard = "NOTIFY_SOCKET" in os.environ
        """Whether a service manager takes what is to be kept."""
        self._stored: set[Process] = set()
        self._found: dict[Process, int] = {}
        for name, pidfd in passed.pidfds():
            process = process_of(name)
            if process is None or process in self._found:
                os.close(pidfd)
                fdstore.forget(name)
            else:
                self._found[process] = pidfd
                self._stored.add(process)

    def __repr__(self) -> str:
        return f"<Kept {len(self._stored)} processes, {len(self._found)} of before>"

    def claim(self, process: Process) -> int | None:
        """Return the pidfd that a daemon before this one kept of the process, dead or alive; the caller closes it."""
        return self._found.pop(process, None)

    def hold(self, processes: Collection[Process]) -> None:
        """Keep exactly these from now on. One that has ended and was never kept needs no keeping."""
        if not self.is_heard:
            return
        wanted = set(processes)
        for process in self._stored - wanted:
            self._stored.discard(process)
            fdstore.forget(name_of(process))
        for process in wanted - self._stored:
            with suppress(HiddenProcess):
                self._keep(process)

    def _keep(self, process: Process) -> None:
        pidfd = open_pidfd(process)
        if pidfd is None:
            return
        try:
            if fdstore.keep(name_of(process), pidfd):
                self._stored.add(process)
        finally:
            os.close(pidfd)

    def close(self) -> None:
        """Close what nobody claimed; what is stored stays there for the next daemon."""
        for pidfd in self._found.values():
            os.close(pidfd)
        self._found.clear()


def name_of(process: Process) -> str:
    """Return the name under which a process is kept."""
    return f"{_PREFIX}-{process.pid}-{process.started_ticks}"


def process_of(name: str) -> Process | None:
    """Return the process that a name means, None if the name is not one of ours."""
    prefix, _, rest = name.partition("-")
    pid, _, started = rest.partition("-")
    if prefix != _PREFIX or not (pid.isdecimal() and started.isdecimal()):
        return None
    return Process(int(pid), int(started))
