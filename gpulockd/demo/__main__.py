"""`python -m gpulockd.demo [--no-demo] [options of gpulockd serve]`."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # a Ctrl-C while the rest is loaded waits until the scene asks for it
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))

from collections.abc import Sequence

from gpulockd.cli.serve import parser
from gpulockd.cli.talk import CommandError, complain
from gpulockd.demo.scene import Scene
from gpulockd.demo.site import choose

NAME = "gpulockd.demo"


def main(words: Sequence[str]) -> int:
    """Run daemon and load until Ctrl-C or SIGTERM."""
    options = parser()
    options.prog = NAME
    options.description = "The daemon and a small demo load, until Ctrl-C."
    options.usage_hint = "'make run ARGS=--help' lists the options"
    options.add_argument("--no-demo", action="store_true", help="the daemon without the demo load")
    try:
        args = options.parse_args(words)
        with choose(args, list(words)) as site:
            return Scene(site, with_load=not args.no_demo).play()
    except CommandError as wrong:
        complain(wrong, NAME)
        return wrong.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
