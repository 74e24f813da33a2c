"""`gpulockd config rollback`: the last stable revision again, without a question, and a look at how it went."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.configuring.telling import Record, ask_slowly, printed
from gpulockd.cli.options import Parser, revision
from gpulockd.cli.talk import NEGATIVE, OK, CommandError, paint, say

_COLOURS = {"healthy": "green", "warning": "yellow", "critical": "red"}


def rollback(words: Sequence[str]) -> int:
    """Roll back; 0 if the system was seen to be well afterwards, else 1."""
    parser = Parser("config rollback", "Bring the last stable revision, or revision N, into force again. No question.")
    parser.add_argument("to", nargs="?", type=revision, metavar="N", help="default: the last stable one")
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for history and audit")
    parser.add_argument("--all", action="store_true", help="also notify, alerts, config and rollout, else left alone")
    parser.add_argument("--restart", metavar="COMMAND", help="run this afterwards, such as a restart of your services")
    parser.json_flag()
    args = parser.parse_args(words)
    with http.find() as daemon:
        said = ask_slowly(
            daemon,
            "POST",
            "/api/v1/config/rollback",
            {"to": args.to, "all": args.all, "reason": args.reason, "origin": "cli"},
        )
    if args.json:
        printed(said)
    else:
        _tell(said)
    if args.restart:
        _restart(args.restart)
    return OK if said["verified"] else NEGATIVE


def _tell(said: Record) -> None:
    *lines, _ = str(said["text"]).splitlines()
    status = str(said["overall_status"])
    print("\n".join([*lines, f"overall_status: {paint(status, _COLOURS.get(status, 'bold'))}"]))


def _restart(command: str) -> None:
    """:raises CommandError: if it cannot be run or fails"""
    say(f"running: {command}")
    try:
        code = subprocess.run(shlex.split(command), check=False).returncode
    except (OSError, ValueError) as wrong:
        raise CommandError(f"cannot run {command!r} ({wrong})", "the rollback itself was done", NEGATIVE) from None
    if code != 0:
        raise CommandError(f"{command!r} ended with code {code}", "the rollback itself was done", NEGATIVE)
