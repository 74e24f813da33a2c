"""What a container hides: the host's processes from the guard, and the daemon's folder from programs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from gpulockd import places
from gpulockd.cli.doctoring.finding import Finding, Host, ok, warn

CHECK = "namespaces"
HOSTS_PID_NAMESPACE = 0xEFFFFFFC
"""The inode of the first pid namespace of a kernel (PROC_PID_INIT_INO)."""

MOUNT = f"mount the folder, not its sockets: -v {places.SYSTEM_RUNTIME}:{places.SYSTEM_RUNTIME}"
PID_HOST = "start the container with --pid=host"


def look(host: Host) -> Iterator[Finding]:
    """Say what the guard and the programs here can see of each other."""
    own = has_own_pids()
    if host.folder is None:
        if own:
            yield warn(CHECK, "this looks like a container, and no daemon's folder is in it", MOUNT)
        else:
            yield ok(CHECK, "the host's pid namespace")
        return
    single = [path for path in sockets(host) if path in mounted_files()]
    if single:
        text = f"{single[0]} is mounted alone: after the next start of the daemon nobody listens there"
        yield warn(CHECK, text, MOUNT)
    hint = str(host.hello.get("hint") or "")
    if hint:
        what, _, cure = hint.partition(": ")
        yield warn(CHECK, f"the guard cannot follow the programs here: {what}", cure or PID_HOST)
    elif not single:
        whose = "a pid namespace of its own, which the guard sees into" if own else "the host's pid namespace"
        yield ok(CHECK, f"{whose}; the daemon's folder is {host.folder}")


def has_own_pids() -> bool:
    """Whether this process is in another pid namespace than the host's first processes."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino != HOSTS_PID_NAMESPACE
    except OSError:
        return False


def sockets(host: Host) -> tuple[str, ...]:
    """The daemon's sockets."""
    guard = os.path.join(host.folder or "", places.GUARD_SOCKET)
    return (host.socket, guard) if host.socket else (guard,)


def mounted_files() -> frozenset[str]:
    """The places where something is mounted."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as rows:
            return frozenset(row.split()[4].encode().decode("unicode_escape", "replace") for row in rows)
    except OSError:
        return frozenset()
