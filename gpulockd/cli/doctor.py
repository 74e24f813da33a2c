"""`gpulockd doctor`: what is wrong, and what to do; with `--redis-acl` the rights that an own Redis must give."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module

from gpulockd.cli import http
from gpulockd.cli.doctoring.finding import Finding, Host
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, paint

CLIENT, DAEMON = "gpulockd-client", "gpulockd-daemon"

PARTS = ("daemon", "unit", "namespaces", "limits", "files", "variables", "store", "cards")
"""The modules of `gpulockd.cli.doctoring`, each loaded when its turn comes: those that load more come last."""

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def main(words: Sequence[str]) -> int:
    """Print a line for each thing looked at; exit code 1 if one of them fails."""
    parser = Parser("doctor", "Say what is wrong on this host and what to do about it; exit code 1 if something fails.")
    parser.add_argument(
        "--redis-acl",
        action="store_true",
        help="print the ACL lines of clients and daemon, for an own Redis",
    )
    parser.add_argument("--pool", metavar="NAME", help="the pool of the clients; default: the local daemon's")
    parser.json_flag()
    args = parser.parse_args(words)
    if args.redis_acl:
        return _rights(args.pool, as_json=args.json)
    if args.pool:
        raise CommandError("--pool goes with --redis-acl", "GPULOCKD_POOL names the pool of everything else", USAGE)
    found = []
    for finding in findings(Host()):
        found.append(finding)
        if not args.json:
            print(told(finding), flush=True)
    fails = sum(finding.level == "fail" for finding in found)
    warnings = sum(finding.level == "warn" for finding in found)
    if args.json:
        answer = {"ok": not fails, "fails": fails, "warnings": warnings, "findings": [asdict(one) for one in found]}
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        print(_summary(fails, warnings))
    return NEGATIVE if fails else OK


def findings(host: Host) -> Iterator[Finding]:
    """Yield what each part finds, as it is found."""
    for part in PARTS:
        yield from import_module(f"gpulockd.cli.doctoring.{part}").look(host)


def told(finding: Finding) -> str:
    """One finding as one line."""
    remedy = f" → {finding.remedy}" if finding.remedy else ""
    return f"{paint(finding.level.ljust(4), _COLOURS[finding.level])}  {finding.check}: {finding.what}{remedy}"


def _summary(fails: int, warnings: int) -> str:
    if not fails and not warnings:
        return "all is well"
    counted = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((fails, "failure"), (warnings, "warning")) if n]
    return f"{' and '.join(counted)}; docs/troubleshooting.md says more about each"


def _rights(pool: str | None, *, as_json: bool) -> int:
    """Print the two lines."""
    from gpulockd.errors import ConfigError
    from gpulockd.ledger.access import client_rule, daemon_rule

    try:
        rules = {"client": client_rule(CLIENT, pool or _pool()), "daemon": daemon_rule(DAEMON)}
    except ConfigError as wrong:
        raise CommandError(wrong.message, "--pool names it", USAGE) from wrong
    if as_json:
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
