"""The command line: one module a command, loaded when it is called.

Its law: what a short command loads is the standard library only.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, complain, hint, say

COMMANDS = {
    "serve": "offer this host's GPUs and keep their line",
    "run": "wait for a GPU, then run a command that holds it",
    "acquire": "hold a GPU for this shell, another process, or a time",
    "renew": "let a lease that was acquired for a time go on",
    "adopt": "make a process that runs already the holder of a GPU",
    "progress": "say how far the work is",
    "status": "who has which GPU",
    "queue": "who waits, and for what",
    "top": "a live view of all of it",
    "release": "take a GPU from its holder",
    "gpu": "drain or resume a GPU",
    "events": "what happened",
    "history": "who held what, who waited, and how it ended",
    "alerts": "what needs a person",
    "config": "see and change the configuration while everything runs",
    "bench": "try a configuration before it is used",
    "doctor": "what is wrong here, and what to do",
    "token": "print the token that writes over TCP need",
    "drill": "exercise every recovery on a private daemon",
    "backup": "write configuration and statistics into one file",
    "restore": "bring a backup's configuration and statistics back",
    "install-service": "run the daemon under systemd",
    "store": "what gpulockd-store.service runs",
    "completion": "print what makes a shell complete all this",
    "version": "print the version",
}
"""Every command and what it does."""

OWN_FAILURE_OF_RUN = 125
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never a traceback without `--debug`."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("GPULOCKD_DEBUG"))
    while words[:1] == ["--debug"]:
        words, debug = words[1:], True
    own = words[: words.index("--")] if "--" in words else words
    debug = debug or (own[:1] != ["run"] and "--debug" in own)
    try:
        _fill_standard_files()
        code = _dispatch(words)
        if sys.stdout is not None:  # it was closed at the start
            sys.stdout.flush()
        return code
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as in `gpulockd events | head`; the interpreter must not complain at its exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return PIPE_CLOSED
    except CommandError as wrong:
        complain(wrong)
        return wrong.code
    except Exception as wrong:  # the last door: one line instead of a traceback
        if debug:
            raise
        if isinstance(wrong, OSError) and wrong.errno == errno.ENOSPC:
            say("what this prints or writes could not be written: no space left on device")
            hint("make room there, or send it elsewhere")
        else:
            say(f"{type(wrong).__name__}: {wrong}")
            complain_of_surprise(words)
        return OWN_FAILURE_OF_RUN if words[:1] == ["run"] else NEGATIVE


def _fill_standard_files() -> None:
    """Put /dev/null where stdin, stdout or stderr was closed, so that no socket of ours takes its number."""
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:
        os.set_inheritable(number, True)
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: SIM115  # as the interpreter does
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a terminal of few characters shows the rest


def complain_of_surprise(words: Sequence[str]) -> None:
    """Say how to see more of an error that nobody foresaw."""
    hint(f"'gpulockd --debug {' '.join(words[:1])} …' shows where")


def _dispatch(words: list[str]) -> int:
    name, rest = (words[0], words[1:]) if words else ("", [])
    if name in ("", "help", "-h", "--help"):
        print(_help(), file=sys.stdout if name else sys.stderr)
        return OK if name else USAGE
    if name in ("--version", "-V"):
        name = "version"
    if name not in COMMANDS:
        raise CommandError(f"unknown command {name!r}{_meant(name)}", "'gpulockd --help' lists the commands", USAGE)
    code: int = import_module(f"gpulockd.cli.{name.replace('-', '_')}").main(rest)
    return code


def _meant(name: str) -> str:
    difflib = import_module("difflib")  # slow to load, and seldom needed
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _help() -> str:
    lines = ["usage: gpulockd [--debug] COMMAND …", "", "Gives each GPU to one program at a time, in a fair order.", ""]
    lines += [f"  {name:<16}{does}" for name, does in COMMANDS.items()]
    return "\n".join([*lines, "", "'gpulockd COMMAND --help' says more about one."])
