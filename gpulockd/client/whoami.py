"""Who this process is: pid, start time, boot, host, user and program."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import uuid
from functools import cache
from pathlib import Path

from gpulockd.model import Process
from gpulockd.units import clean


@cache
def boot_id() -> str:
    """The kernel's id of this boot: the same in all containers of a host. `GPULOCKD_BOOT_ID` overrides it."""
    return os.environ.get("GPULOCKD_BOOT_ID") or _kernels_boot_id() or f"node-{uuid.getnode():012x}"


@cache
def _kernels_boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def namespace() -> str:
    """Where this process's pid and start time are counted, beside its boot id; "" where that is not certain.

    Who counts in the same namespaces finds a process under the numbers that it says of itself, unless it is dead. Both
    are a namespace's own: a time namespace moves the start time.
    """
    try:
        # A /proc of another pid namespace tells another process's start time for this pid.
        if boot_id() != _kernels_boot_id() or os.readlink("/proc/self") != str(os.getpid()):
            return ""
        return ":".join(str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in ("pid", "time"))
    except OSError:
        return ""


def counts_alike(process: Process) -> bool:
    """Whether a process counts as this one does: it is found under the numbers that it says of itself, or dead."""
    return process.boot_id == boot_id() and process.namespace != "" and process.namespace == namespace()


@cache
def machine() -> str:
    """What stays the same over reboots of this host: machine id and host name, since cloned machines share the id."""
    try:
        id = Path("/etc/machine-id").read_text().strip()
    except OSError:
        id = ""
    return os.environ.get("GPULOCKD_MACHINE") or f"{id}@{socket.gethostname()}"


def started_ticks(pid: int) -> int:
    """The kernel's start time of a process in clock ticks since boot; 0 if it is gone or cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def program() -> str:
    """The program's name as a person would call it: its script's name, else "python"."""
    return _program_of(sys.argv[0] if sys.argv else "")


@cache
def _program_of(path: str) -> str:
    return "python" if path in ("", "-c", "-m") else clean(Path(path).stem) or "python"


def this_process() -> Process:
    """This process as the ledger knows it. Asked anew after a fork."""
    pid = os.getpid()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return Process(
        pid=pid,
        host=socket.gethostname(),
        boot_id=boot_id(),
        user=user,
        program=program(),
        started_ticks=started_ticks(pid),
        namespace=namespace(),
    )
