"""`gpulockd progress`: say how far the work is, from a script inside `gpulockd run`. It is the task's heartbeat too."""

from __future__ import annotations

import json
import os
import re
from argparse import ArgumentTypeError
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.leases import amend, named
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import OK
from gpulockd.units import sendable

LONGEST_MESSAGE = 500
_FRACTION = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


def main(words: Sequence[str]) -> int:
    """Say it; exit code 1 if the lease has ended, so that a script can stop."""
    parser = Parser("progress", "Say how far the work is; 'gpulockd status' and the page show it.")
    parser.add_argument("percent", type=_percent, metavar="PERCENT", help="0 to 100, such as 45, 45%% or 9/20")
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help='what it is at, such as "frame 100"')
    parser.add_argument("--lease", metavar="LEASE", help="its id; default: $GPULOCKD_LEASE")
    parser.json_flag()
    args = parser.parse_args(words)
    if os.environ.get("GPULOCKD_DISABLE") == "1":
        return OK  # the script runs without a lock, and nobody is told
    lease = named(parser, args.lease)
    new: dict[str, object] = {"percent": args.percent}
    if args.message is not None:
        new["message"] = sendable(args.message[:LONGEST_MESSAGE])
    said = amend(http.find(), lease, new)
    if args.json:
        print(json.dumps(said, indent=2))
    return OK


def _percent(text: str) -> float:
    fraction = _FRACTION.fullmatch(text.strip())
    try:
        percent = 100 * float(fraction[1]) / float(fraction[2]) if fraction else float(text.strip().removesuffix("%"))
    except (ValueError, ZeroDivisionError):
        percent = -1.0
    if not 0 <= percent <= 100:
        raise ArgumentTypeError(f"{text!r}: say 0 to 100, such as 45, 45% or 9/20")
    return percent
