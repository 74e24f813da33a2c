"""`gpulockd top`: a live view in the terminal, or with `--once` one frame of it for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError
from gpulockd.cli.watching import rows
from gpulockd.cli.watching.picture import lately, take

MISSING_HINT = "pip install 'gpulockd[tui]'; 'gpulockd top --once' needs it not"


def main(words: Sequence[str]) -> int:
    """Show the pool until `q`."""
    parser = Parser("top", "Who has which GPU, who waits, and what happens: a live view; q ends it.")
    parser.add_argument("--once", action="store_true", help="print one frame and end; needs no terminal")
    parser.add_argument("--sort", choices=tuple(rows.SORTS), default="gpu", help="the order of the GPUs; default gpu")
    parser.add_argument("--json", action="store_true", help="with --once: print JSON")
    args = parser.parse_args(words)
    if args.json and not args.once:
        raise CommandError("--json goes with --once", "gpulockd top --once --json", USAGE)
    daemon = http.find()
    if not args.once:
        return _live(daemon.path, args.sort)
    picture, events = take(daemon.path), lately(daemon.path)
    if args.json:
        kept = {"pool": picture.pool, "gpus": picture.gpus, "leases": picture.leases, "queue": picture.queue}
        print(json.dumps({**kept, "queued": picture.queued, "events": events}, indent=2))
    else:
        print(rows.frame(picture, events, args.sort))
    return OK


def _live(path: str, sort: str) -> int:
    try:
        from gpulockd.cli.watching.screen import Top
    except ImportError as missing:
        name = (missing.name or "textual").partition(".")[0]
        raise CommandError(f"top needs the package {name!r}", MISSING_HINT, NEGATIVE) from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("top needs a terminal", "'gpulockd top --once' prints one frame", USAGE)
    Top(path, sort).run()
    return OK
