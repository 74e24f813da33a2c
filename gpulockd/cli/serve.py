"""`gpulockd serve`: the daemon of this host."""

from __future__ import annotations

from collections.abc import Sequence

from gpulockd.cli.options import Parser
from gpulockd.cli.talk import USAGE, CommandError

STOP_STORE = (
    "stop the private store at the end too: who still holds a GPU is named in the log, and loses it within 12 s unless "
    "the daemon is back before"
)


def parser() -> Parser:
    """The options of the daemon; the demo takes them too."""
    made = Parser("serve", "Offer this host's GPUs, keep their line, and serve HTTP. Ctrl-C stops it.")
    made.add_argument("--config", metavar="FILE", help="config.yml; default: GPULOCKD_CONFIG, then the usual places")
    made.add_argument("--simulate", type=int, metavar="N", help="N simulated GPUs; 0: never simulate")
    made.add_argument("--listen", metavar="HOST:PORT", help="of the HTTP API and the page at /; default 127.0.0.1:8788")
    made.add_argument("--socket", metavar="PATH", help="the API's unix socket, or the folder of all sockets")
    made.add_argument("--redis", metavar="URL|embedded", help="the store; default: a private Valkey")
    made.add_argument("--pool", metavar="NAME", help="the pool's name")
    made.add_argument("--state-dir", metavar="DIR", help="where state is kept")
    made.add_argument("--stop-store", action="store_true", help=STOP_STORE)
    return made


def main(words: Sequence[str]) -> int:
    """Run the daemon until SIGTERM or Ctrl-C."""
    args = parser().parse_args(words)
    if args.simulate is not None and args.simulate < 0:
        raise CommandError(f"serve: --simulate {args.simulate}: say how many GPUs, or 0", "", USAGE)
    try:
        from gpulockd.daemon.lean import load_log

        load_log()
        from gpulockd.daemon.plan import Options
        from gpulockd.daemon.serve import main as run_daemon
    except ImportError as missing:
        raise CommandError(
            f"the daemon needs the package {missing.name!r}", "pip install 'gpulockd[server]'", USAGE
        ) from None
    return run_daemon(
        Options(
            config=args.config,
            simulate=args.simulate,
            listen=args.listen,
            socket=args.socket,
            redis=args.redis,
            pool=args.pool,
            state_dir=args.state_dir,
            stop_store=args.stop_store,
        )
    )
