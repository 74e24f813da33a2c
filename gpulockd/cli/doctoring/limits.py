"""The limits of the kernel that the daemon, or the programs here, may run into."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterator

from gpulockd.cli.doctoring.finding import Finding, Host, ok, warn

CHECK = "limits"
FEWEST_FILES = 1024
FULL = 0.8
LEAST_LOCKED_KIB = 8192
"""What Debian gives by default."""


def look(host: Host) -> Iterator[Finding]:
    """Say which limit is too low."""
    yield _files(host.pid)
    yield _inotify()
    yield _locked()


def _files(pid: int | None) -> Finding:
    """Open files: of the daemon if it is known, else of this shell."""
    whose, limit = "this shell", resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    used = 0
    if pid is not None:
        whose, limit, used = "the daemon", _soft_limit(pid) or limit, _descriptors(pid)
    said = "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
    text = f"{whose} may open {said} files" + (f" and has {used}" if used else "")
    cure = "LimitNOFILE=65536 in the unit (systemctl edit gpulockd), or 'ulimit -n 65536' before 'gpulockd serve'"
    if limit != resource.RLIM_INFINITY and (limit < FEWEST_FILES or used > FULL * limit):
        return warn(CHECK, f"{text}: each program that holds or waits takes one", cure)
    return ok(CHECK, text)


def _soft_limit(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/limits", encoding="ascii") as rows:
            words = next(row for row in rows if row.startswith("Max open files")).split()
    except (OSError, StopIteration):
        return None
    return resource.RLIM_INFINITY if words[3] == "unlimited" else int(words[3])


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _inotify() -> Finding:
    """Try it, as the daemon does that watches its configuration file."""
    libc = ctypes.CDLL(None, use_errno=True)
    made = libc.inotify_init1(os.O_CLOEXEC)
    if made < 0:
        return _no_inotify("instances", "max_user_instances", ctypes.get_errno())
    try:
        if libc.inotify_add_watch(made, b"/", 0x100) < 0:
            return _no_inotify("watches", "max_user_watches", ctypes.get_errno())
    finally:
        os.close(made)
    return ok(CHECK, "inotify can be used: changes of config.yml are seen at once")


def _no_inotify(what: str, name: str, code: int) -> Finding:
    why = errno.errorcode.get(code, str(code))
    text = f"no inotify {what} are left for this user ({why}): changes of config.yml are seen slowly"
    return warn(CHECK, text, f"sudo sysctl fs.inotify.{name}=8192, or end what uses them up")


def _locked() -> Finding:
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if soft == resource.RLIM_INFINITY or soft >= LEAST_LOCKED_KIB * 1024:
        size = "without limit" if soft == resource.RLIM_INFINITY else f"{soft // 1024**2} MiB"
        return ok(CHECK, f"programs here may lock memory: {size}")
    text = f"programs here may lock only {soft // 1024} KiB of memory: NCCL over InfiniBand and io_uring need more"
    return warn(CHECK, text, "'ulimit -l unlimited', LimitMEMLOCK=infinity, or docker run --ulimit memlock=-1")
