"""Which processes can hold no lease, because nobody can end them when it is over."""

from __future__ import annotations

import os

OF_THE_KERNEL = 0x0020_0000
"""PF_KTHREAD in the flags of `/proc/PID/stat`."""


def why_unendable(pid: int, store_pid: int) -> str:
    """Return what a process is that can hold nothing, empty for all others.

    :param store_pid: the daemon's own store, 0 if it has none
    """
    if pid == os.getpid():
        return "this daemon itself"
    if pid == store_pid:
        return "the store of this daemon"
    if is_of_the_kernel(pid):
        return "a thread of the kernel"
    if pid in _ancestors():
        return "what has started this daemon, and may take it down with it"
    return ""


def _words(pid: int) -> list[bytes]:
    """The fields of `/proc/PID/stat` after the name, none if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def is_of_the_kernel(pid: int) -> bool:
    """Whether a process is a thread of the kernel."""
    words = _words(pid)
    return len(words) > 6 and bool(int(words[6]) & OF_THE_KERNEL)


def _ancestors() -> set[int]:
    found: set[int] = set()
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        words = _words(pid)
        pid = int(words[1]) if words else 0
    return found


def counts_as_we_do(pid: int) -> bool:
    """Whether a process that `/proc` shows is of our own pid namespace: in one below, its numbers mean others here.

    `ns/pid` would say it too, but to root only; NSpid has one number for each namespace from ours down to its own.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return any(line.startswith(b"NSpid:") and len(line.split()) == 2 for line in file)
    except OSError:
        return False
