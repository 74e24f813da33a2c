"""What a process is called when people read it: program, script, pid and user, and never an argument.

Arguments hold tokens and passwords, and a program may write anything into its own command line: only the program's
name and the script's or module's are shown, and of those only letters that are safe on a terminal.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from functools import lru_cache

import anyio
import anyio.to_thread

from gpulockd.hardware.processes.identity import Process, stat_of
from gpulockd.hardware.processes.table import Memories, user_of

LONGEST_NAME = 48

_INTERPRETER = re.compile(r"(python|pypy|perl|ruby|node|julia|lua|php|Rscript|bash|dash|zsh|sh)[\d.]*$")
_TAKES_A_VALUE = {"-W", "-X", "-r", "-I", "--require", "-o", "-O"}
_IS_CODE = {"-c", "-e", "-p", "--eval"}
_NAME = re.compile(r"[\w.+-]+$")
_UNSAFE = re.compile(r"[^\w.+@-]+")


def called(words: Sequence[str], name: str) -> str:
    """What a command line is called: "python train.py" for `/usr/bin/python -u /srv/train.py --key secret`.

    :param words: the command line; empty for kernel threads and for processes that do not answer
    :param name: the kernel's name of the process, which stands in then
    """
    first = words[0].split(maxsplit=1)[:1] if words else []
    program = os.path.basename(first[0].strip("[]:-")) if first else ""
    program = _UNSAFE.sub("?", program or name)[:LONGEST_NAME] or "?"
    script = script_in(words[1:]) if _INTERPRETER.match(program) else None
    return f"{program} {script}" if script else program


def script_in(arguments: Sequence[str]) -> str | None:
    """The script, or "-m module", among an interpreter's arguments; None if it runs code from the command line."""
    rest = iter(arguments)
    for word in rest:
        if word in _IS_CODE:
            return None
        if word == "-m":
            module = next(rest, "")
            return f"-m {module}" if _NAME.match(module) and len(module) <= LONGEST_NAME else None
        if word in _TAKES_A_VALUE:
            next(rest, None)
        elif not word.startswith("-"):
            base = os.path.basename(word)
            return base if _NAME.match(base) and len(base) <= LONGEST_NAME else None
    return None


async def describe(process: Process, memories: Memories) -> str:
    """Return "python train.py (pid 4711, user alice)"; "(pid 4711, gone)" if it is over."""
    stat = stat_of(process.pid)
    if stat is None or stat.process != process:
        return f"(pid {process.pid}, gone)"
    words = await memories.command(process)
    user = user_of(process)
    return f"{called(words, stat.name)} (pid {process.pid}, user {await user_name(user)})"


async def user_name(user: int | None) -> str:
    """The name of a user id; the number where the name service does not know it or is slow."""
    if user is None:
        return "unknown"
    with anyio.move_on_after(1.0):
        return await anyio.to_thread.run_sync(_look_up, user, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
    return str(user)


@lru_cache(maxsize=256)
def _look_up(user: int) -> str:
    try:
        return _UNSAFE.sub("?", pwd.getpwuid(user).pw_name)
    except KeyError:
        return str(user)
