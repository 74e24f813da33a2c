"""Processes as /proc shows them: who this one is, which descend from it, and a signal that reaches only the one meant.

Nothing but words and the standard library: `run` starts its command before anything heavy is loaded.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from gpulockd.units import clean


class Member(NamedTuple):
    """One process incarnation: `started_ticks` is its kernel start time, which a reused pid does not share."""

    pid: int
    parent: int
    started_ticks: int
    name: str
    is_dead: bool


def look(pid: int) -> Member | None:
    """What /proc says of a process, None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().decode(errors="replace").rpartition(")")
    except OSError:
        return None
    words = tail.split()
    return Member(pid, int(words[1]), int(words[19]), head.partition("(")[2], words[0] in "ZX" and int(words[17]) <= 1)


def pending(pid: int) -> set[int]:
    """The signals that wait for a process as a whole."""
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        bits = next((int(line.split()[1], 16) for line in file if line.startswith(b"ShdPnd:")), 0)
        return {number for number in range(1, 65) if bits >> (number - 1) & 1}
    return set()


def descendants(root: int) -> list[Member]:
    """The living descendants of a process, parents before children."""
    children: dict[int, list[Member]] = {}
    for name in os.listdir("/proc"):
        member = look(int(name)) if name.isdigit() else None
        if member is not None:
            children.setdefault(member.parent, []).append(member)
    found: list[Member] = []
    queue = [root]
    while queue:
        for member in children.get(queue.pop(), ()):
            queue.append(member.pid)
            found.append(member)
    return [member for member in found if not member.is_dead]


def has_children() -> bool:
    """Whether this process has any child; it costs one system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def send(member: Member, number: int) -> bool:
    """Signal exactly this incarnation; a pid that belongs to another process by now is left alone."""
    try:
        descriptor = os.pidfd_open(member.pid)
    except OSError:
        return False
    try:
        # The descriptor is open, so the pid cannot change hands between this look and the signal.
        now = look(member.pid)
        if now is None or now.started_ticks != member.started_ticks:
            return False
        with suppress(OSError):
            signal.pidfd_send_signal(descriptor, number)
        return True
    finally:
        os.close(descriptor)


def this_process(program: str) -> dict[str, Any]:
    """This process as a request names it; `gpulockd.client.whoami` says the same as a `Process`."""
    myself = look(os.getpid())
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "user": _user(),
        "program": program,
        "started_ticks": myself.started_ticks if myself else 0,
    }


def program_of(command: Sequence[str]) -> str:
    """A command as a person would call it: "train" for `python -u train.py`, else the program's name."""
    name = os.path.basename(command[0])
    if name.startswith("python"):
        script = next((word for word in command[1:] if not word.startswith("-")), "")
        if script.endswith(".py"):
            return clean(os.path.basename(script)[:-3])
    return clean(name) or "run"


def _boot_id() -> str:
    given = os.environ.get("GPULOCKD_BOOT_ID")
    if given:
        return given
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        import uuid

        return f"node-{uuid.getnode():012x}"


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def signal_name(number: int) -> str:
    """ "SIGTERM" for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def signal_of(text: str) -> int:
    """The signal that a person names: "TERM", "SIGTERM" or "15".

    :raises ValueError: if there is none
    """
    if text.isdigit():
        return int(signal.Signals(int(text)))
    name = text.upper()
    try:
        return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except KeyError:
        raise ValueError(f"{text!r} is no signal") from None
