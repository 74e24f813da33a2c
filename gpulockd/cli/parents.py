"""Who has called this command, and what a process is called: read from /proc, with the standard library only."""

from __future__ import annotations

import os

from gpulockd.cli.processes import look, program_of

FORKED_WITHOUT_EXEC = 0x40
"""PF_FORKNOEXEC of the kernel: a process that runs on as a copy of its parent, such as a subshell."""

SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "mksh", "fish", "ash", "busybox"})

RUNS_ANOTHER = frozenset({"timeout", "time", "sudo", "doas", "env", "nice", "ionice", "nohup", "setsid", "stdbuf"})
"""Programs that run one other and end with it."""


def caller_of(pid: int) -> int:
    """Return the shell that is meant by the parent `pid`.

    Some shells fork once more for `$(gpulockd …)`; that copy, whose output goes into the same pipe as ours, ends with
    us, so its parent is meant; so is that of a program that only runs us, such as `timeout`. A subshell that somebody
    has written is itself meant.
    """
    while (known := look(pid)) is not None and known.parent > 1:
        if known.name not in RUNS_ANOTHER and not (_is_copy(pid) and _output_of(pid) == _output_of(os.getpid()) != ""):
            break
        pid = known.parent
    return pid


def name_of_process(pid: int) -> str:
    """What a person would call a process: "train" for `python train.py`, "night" for `bash night.sh`."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = [word.decode(errors="replace") for word in file.read().split(b"\0") if word]
    except OSError:
        words = []
    if not words:
        known = look(pid)
        return known.name if known is not None else "process"
    name = os.path.basename(words[0]).lstrip("-")
    script = next((word for word in words[1:] if not word.startswith("-")), "")
    if name in SHELLS and script and "-c" not in words:
        return os.path.basename(script).partition(".")[0] or name
    return program_of([name, *words[1:]])


def _is_copy(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return bool(int(words[6]) & FORKED_WITHOUT_EXEC)


def _output_of(pid: int) -> str:
    """The pipe that a process writes its output to; empty if it is none."""
    try:
        target = os.readlink(f"/proc/{pid}/fd/1")
    except OSError:
        return ""
    return target if target.startswith("pipe:") else ""
