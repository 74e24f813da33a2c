"""`gpulockd doctor`: what is wrong, and what to do; with `--redis-acl` the rights that an own Redis must give."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import OK, USAGE, CommandError
from gpulockd.errors import ConfigError
from gpulockd.ledger.access import client_rule, daemon_rule

CLIENT, DAEMON = "gpulockd-client", "gpulockd-daemon"


def main(words: Sequence[str]) -> int:
    """Print the two lines."""
    parser = Parser("doctor", "Print what an own Redis or Valkey must allow the clients and the daemon.")
    parser.add_argument("--redis-acl", action="store_true", help="print an ACL line for clients and one for the daemon")
    parser.add_argument("--pool", metavar="NAME", help="the pool of the clients; default: the local daemon's")
    parser.json_flag()
    args = parser.parse_args(words)
    if not args.redis_acl:
        raise CommandError("nothing to do", "'gpulockd doctor --redis-acl' prints the rights in Redis", USAGE)
    try:
        rules = {"client": client_rule(CLIENT, args.pool or _pool()), "daemon": daemon_rule(DAEMON)}
    except ConfigError as wrong:
        raise CommandError(wrong.message, "--pool names it", USAGE) from wrong
    if args.json:
        print(json.dumps(rules, indent=2))
        return OK
    print(
        "# Put passwords of your own in the place of PASSWORD, and send both lines with redis-cli as an administrator."
    )
    print(f"# Clients: GPULOCKD_REDIS_URL=redis://{CLIENT}:PASSWORD@HOST:6379/0")
    print(rules["client"])
    print(f"# The daemon: redis.url: redis://{DAEMON}:PASSWORD@HOST:6379/0")
    print(rules["daemon"])
    print("# Then take away what everybody may without a password: ACL SETUSER default off")
    return OK


def _pool() -> str:
    """The pool of this shell, else the local daemon's, else the one that a pool has by default."""
    named = os.environ.get("GPULOCKD_POOL")
    if named:
        return named
    try:
        with http.find() as daemon:
            return str(daemon.get("/api/v1/pools")["pools"][0]["pool"])
    except (CommandError, LookupError):
        return "default"
