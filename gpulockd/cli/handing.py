"""A lease that the daemon keeps is handed over by what is printed: who cannot be told of it does not hold it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from gpulockd.cli import http
from gpulockd.cli.talk import NEGATIVE, CommandError, say
from gpulockd.cli.wish import Grant

GONE = 404


def check_stdout(command: str) -> None:
    """:raises CommandError: if stdout was closed at the start, so that nobody could be told"""
    if sys.stdout is None:
        hint = "leave '>&-' out; '>/dev/null' is for who does not want to read the lease's id"
        raise CommandError(f"{command}: stdout is closed, so nobody would know of the lease", hint, NEGATIVE)


def hand_over(daemon: http.Daemon, grant: Grant, tell: Callable[[], None]) -> None:
    """Print with `tell` what was granted; what could not be printed is given back.

    :raises CommandError: if it could not
    """
    try:
        tell()
        sys.stdout.flush()
    except OSError as wrong:
        give_back(daemon, grant)
        # What is left in the buffer must not complain at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        why = wrong.strerror or str(wrong)
        raise CommandError(f"the lease could not be printed ({why}), so it was given back", "read stdout", 1) from None
    except BaseException:
        give_back(daemon, grant)
        raise


def give_back(daemon: http.Daemon, grant: Grant) -> None:
    """End a lease that the daemon keeps. Where it cannot be told, the lease ends with its process or its time."""
    try:
        with daemon:
            daemon.ask("DELETE", f"/api/v1/leases/{http.segment(grant.lease)}")
    except (OSError, CommandError) as wrong:
        say(f"lease {grant.lease} was not given back: {wrong}")


def withdraw(daemon: http.Daemon, ticket: str) -> None:
    """End a request of ours wherever it is; it is granted nothing any more. A daemon that is away ends it by itself."""
    try:
        with daemon:
            daemon.ask("DELETE", f"/api/v1/leases/{http.segment(ticket)}?pending=1")
    except http.Refused as refused:
        if refused.status != GONE:
            say(f"the request {ticket} was not taken back: {refused.what}")
    except (OSError, CommandError):
        return
