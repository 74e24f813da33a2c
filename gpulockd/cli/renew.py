"""`gpulockd renew`: let a lease that was acquired for a time go on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.leases import amend, named
from gpulockd.cli.options import Parser, duration
from gpulockd.cli.records import name_of
from gpulockd.cli.talk import OK, say
from gpulockd.units import format_duration


def main(words: Sequence[str]) -> int:
    """Renew one lease; exit code 1 if it has ended."""
    parser = Parser("renew", "Let a lease that was acquired with --ttl go on, from now.")
    parser.add_argument("lease", nargs="?", metavar="LEASE", help="its id; default: $GPULOCKD_LEASE")
    parser.add_argument("--ttl", type=duration, metavar="10m", help="for so long; default: as long as it was asked for")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what goes wrong")
    parser.json_flag()
    args = parser.parse_args(words)
    lease = named(parser, args.lease)
    said = amend(http.find(), lease, {"renew": True} if args.ttl is None else {"ttl": args.ttl})
    if args.json:
        print(json.dumps(said, indent=2))
    elif not args.quiet:
        gpus = ", ".join(f"GPU {name_of(key)}" for key in said["gpus"])
        say(f"holds {gpus} for {_spoken(said['ends_in_s'])} from now")
    return OK


def _spoken(ends_in_s: float) -> str:
    """The time that was asked for, less the moment that the answer took."""
    return format_duration(math.ceil(ends_in_s) if ends_in_s >= 10 else ends_in_s)
