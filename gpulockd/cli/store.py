"""`gpulockd store`: what gpulockd-store.service runs; a daemon without systemd needs no such command."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError
from gpulockd.errors import ConfigError, GpuLockError


def main(words: Sequence[str]) -> int:
    """Become the private store's server, or judge the one that has just started."""
    parser = Parser("store", "Become the private store's server. gpulockd-store.service calls this, not a person.")
    parser.add_argument("--judge", action="store_true", help="wait until it answers, and write down if it is complete")
    parser.add_argument("--config", metavar="FILE", help="config.yml, for redis.server_binary")
    parser.add_argument("--socket", metavar="PATH", help="as the daemon's")
    parser.add_argument("--state-dir", metavar="DIR", help="as the daemon's")
    args = parser.parse_args(words)
    try:
        import anyio

        from gpulockd.daemon import configuration, folders, server, storeunit
    except ImportError as missing:
        raise CommandError(
            f"the store needs the package {missing.name!r}", "pip install 'gpulockd[server]'", USAGE
        ) from None
    try:
        places = folders.resolve(args.socket, args.state_dir)
        if not args.judge:
            settings = configuration.load(args.config).settings
            storeunit.become(places, server.find_binary(settings.redis.server_binary))
        main_pid = os.environ.get("MAINPID", "")
        anyio.run(storeunit.judge, places, int(main_pid) if main_pid.isdigit() else None)
    except GpuLockError as trouble:
        raise CommandError(trouble.message, "", USAGE if isinstance(trouble, ConfigError) else NEGATIVE) from None
    return OK
