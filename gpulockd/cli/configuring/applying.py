"""`gpulockd config apply`: bring a file or a profile into force, at once or in stages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from gpulockd.cli import http
from gpulockd.cli.configuring import changing, rollout
from gpulockd.cli.configuring.checking import tree_of
from gpulockd.cli.configuring.telling import Record, ask_slowly, flat, printed
from gpulockd.cli.options import Parser, duration
from gpulockd.cli.talk import OK, USAGE, CommandError, say

MANY = 10

STAGED = "in stages: --canary 10% --hold 24h --then 50% --hold 48h"


def share(text: str) -> float:
    """A share of the fleet: "10%" or 0.1.

    :raises argparse.ArgumentTypeError: unless it is over 0 and at most 1
    """
    try:
        value = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; say 10% or 0.1")
    return value


class _Stage(argparse.Action):
    """--canary and --then begin a stage, --hold says how long it lasts."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        stages: list[Record] = [*(namespace.stages or [])]
        if option == "--canary" and stages:
            raise CommandError("config apply: --canary is the first stage, and said once", STAGED, USAGE)
        if option == "--then" and not stages:
            raise CommandError("config apply: --then comes after --canary", STAGED, USAGE)
        if option == "--hold":
            if not stages or "hold" in stages[-1]:
                raise CommandError("config apply: --hold belongs to the --canary or --then before it", STAGED, USAGE)
            stages[-1] = stages[-1] | {"hold": value}
        else:
            stages.append({"share": value})
        namespace.stages = stages


def apply(words: Sequence[str]) -> int:
    """Apply a file (what it sets is then set live), or a profile; with --canary in stages."""
    args = _parser().parse_args(words)
    if (args.file is None) == (args.profile is None):
        raise CommandError("config apply: say a FILE, - or --profile NAME", "'gpulockd config apply --help'", USAGE)
    change: Record = {"profile": args.profile} if args.profile is not None else {"set": tree_of(args.file)}
    if args.file is not None and not change["set"] and not args.replace:
        raise CommandError(f"{args.file}: sets nothing", "write what is to change, or say --replace", USAGE)
    if args.stages is not None or args.staged:
        return _roll_out(args, change)
    if args.file is not None and not args.json:
        _note_of_needless(change["set"])
    if args.replace:
        change["replace"] = True
    return changing.send(args, change, json=args.json)


def _note_of_needless(tree: Record) -> None:
    """Say so where most of a file is in force anyway: set live, it goes over the files of all hosts."""
    with http.find() as daemon:
        now = flat(daemon.get("/api/v1/config")["settings"])
    said = flat(tree)
    same = sum(path in now and now[path] == value for path, value in said.items())
    if same > MANY:
        say(
            f"{same} of the {len(said)} settings in this file are in force anyway; set live, they go over the files of "
            "all hosts: better apply only what is to change ('gpulockd config unset BLOCK' takes a block back)"
        )


def _parser() -> Parser:
    parser = Parser("config apply", f"Bring a file or a profile into force now, or {STAGED}.")
    parser.add_argument("file", nargs="?", metavar="FILE", help="a config.yml with what is to change; - reads it")
    parser.add_argument("--profile", metavar="NAME", help="a bundle: optimized, high_load, low_load or your own")
    parser.add_argument("--replace", action="store_true", help="what the file leaves out is not set live any more")
    parser.add_argument("--staged", action="store_true", help="in the stages that the configuration says")
    parser.add_argument(
        "--canary", dest="stages", action=_Stage, type=share, metavar="10%", help="begin with this share"
    )
    parser.add_argument("--then", dest="stages", action=_Stage, type=share, metavar="50%", help="then with this share")
    parser.add_argument("--hold", dest="stages", action=_Stage, type=duration, metavar="24h", help="and hold so long")
    changing.add_flags(parser)
    return parser


def _roll_out(args: argparse.Namespace, change: Record) -> int:
    wrong = [flag for flag in ("pool", "expect", "dry_run", "replace") if getattr(args, flag)]
    if wrong:
        flags = ", ".join(f"--{flag.replace('_', '-')}" for flag in wrong)
        raise CommandError(f"config apply: {flags} and a rollout do not go together", STAGED, USAGE)
    stages = args.stages or []
    if any("hold" not in stage for stage in stages):
        raise CommandError("config apply: each stage needs its --hold", STAGED, USAGE)
    body = change | {"stages": stages, "reason": args.reason, "unvalidated": args.unvalidated}
    with http.find() as daemon:
        said = ask_slowly(daemon, "POST", "/api/v1/config/rollout", body)
    if args.json:
        printed(said)
    else:
        rollout.tell(said)
    return OK
