"""`gpulockd release`: take a GPU from its holder."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.records import name_of, process_of, seconds, task_of
from gpulockd.cli.talk import NEGATIVE, OK, CommandError, hint, say


def main(words: Sequence[str]) -> int:
    """End one lease, whoever holds it; exit code 1 if there is none."""
    parser = Parser("release", "Take a GPU from its holder: the next in the queue gets it.")
    parser.add_argument("what", metavar="GPU|KEY|LEASE", help="a GPU's index, a lock's key or a lease's id")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask on a terminal")
    parser.json_flag()
    args = parser.parse_args(words)
    daemon = http.find()
    if not args.yes and sys.stdin.isatty() and sys.stderr.isatty():
        _say_whose(daemon, args.what)
        print(f"gpulockd: take {args.what} from its holder? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("nothing was changed")
            return NEGATIVE
    try:
        with daemon:
            ended = daemon.ask("DELETE", f"/api/v1/leases/{http.segment(args.what)}")
    except http.Refused as refused:
        if refused.status == 404:
            raise CommandError(
                f"nothing is held as {args.what!r}", "'gpulockd status' lists what is held", NEGATIVE
            ) from refused
        raise
    if args.json:
        print(json.dumps(ended, indent=2))
    else:
        gpus = ", ".join(f"GPU {name_of(key)}" for key in ended.get("gpus") or []) or args.what
        is_own = ended.get("reason") == "released"
        what = f"released {gpus}" if is_own else f"took {gpus} from {ended.get('task') or 'its holder'}"
        print(f"{what} (lease {ended.get('id')})")
    return OK


def _say_whose(daemon: http.Daemon, what: str) -> None:
    """Say who holds that and what becomes of it, before somebody says yes."""
    with daemon:
        leases = [lease for lease in daemon.get("/api/v1/leases")["leases"] if not lease.get("of")]
    key = f"gpu_lock:{int(what)}" if what.isascii() and what.isdigit() else what
    for lease in leases:
        if what == lease["id"] or key in lease["gpus"]:
            gpus = ", ".join(f"GPU {name_of(key)}" for key in lease["gpus"])
            process = process_of(lease)
            who = f"{task_of(lease)}{f' (pid {process})' if process else ''}"
            say(f"{gpus} held by {who} for {seconds(lease['held_s'])}")
            hint("its program is ended; a hold of your own by 'gpulockd acquire' is given back")
