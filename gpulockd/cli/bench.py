"""`gpulockd bench config`: try a configuration on a private daemon before it is used."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from gpulockd.cli import http
from gpulockd.cli.options import Parser
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, say
from gpulockd.errors import ConfigError, GpuLockError

if TYPE_CHECKING:  # names of types only: they load the daemon's packages
    from gpulockd.trial.chosen import Chosen
    from gpulockd.trial.load import Load
    from gpulockd.trial.verdict import Verdict

HINT = "'gpulockd bench config --help'"
QUICK_ROUNDS, ROUNDS = 2, 6
RECORDED_AT = "/api/v1/config/validation"


def parser() -> Parser:
    """The options of `bench config`."""
    made = Parser(
        "bench config",
        "Run short, medium and long tasks under two configurations, on private daemons with simulated GPUs, and say "
        "whether the candidate may be used: success >= 95 %, mean wait at least 30 % less, Redis CPU < 50 % more, "
        "timeouts < 5 %. Exit code 0: validated, 1: not, 2: wrong use.",
    )
    which = "a YAML file (its rest is as live), 'live', 'defaults', or a profile such as 'optimized'"
    made.add_argument("--baseline", default="live", metavar="CONFIG", help=f"{which}; default: live")
    made.add_argument("--candidate", required=True, metavar="CONFIG", help="as --baseline")
    made.add_argument("--polling", action="store_true", help="cut programs off from notifications, so that they poll")
    made.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    made.add_argument("--rounds", type=int, metavar="N", help=f"rounds with each; default {ROUNDS}")
    made.add_argument("--gpus", type=int, default=8, metavar="N", help="simulated GPUs; default 8")
    made.add_argument("--scale", type=float, default=1.0, metavar="X", help="tasks X times as long (default: < 0.5 s)")
    made.add_argument("--seed", type=int, metavar="N", help="repeat the load of an earlier trial")
    made.add_argument("--no-record", action="store_true", help="do not tell the daemon the verdict")
    made.json_flag()
    return made


def main(words: Sequence[str]) -> int:
    """Run the trial that is named."""
    if words[:1] != ["config"]:
        if words[:1] in (["-h"], ["--help"]):
            return main(["config", "--help"])
        raise CommandError(f"bench: what? {words[0] if words else ''}".rstrip(), HINT, USAGE)
    args = parser().parse_args(list(words[1:]))
    if (args.rounds is not None and args.rounds < 1) or args.gpus < 1 or not 0 < args.scale <= 1000:
        raise CommandError("bench config: --rounds and --gpus are at least 1, --scale is above 0", HINT, USAGE)
    if args.seed is None:
        args.seed = secrets.randbelow(10**6)
    signal.signal(signal.SIGTERM, _end)  # what was started is ended too
    try:
        return _measure(args)
    except ImportError as missing:
        raise CommandError(
            f"a trial needs the package {missing.name!r}", "pip install 'gpulockd[server]'", USAGE
        ) from None


def _measure(args: Namespace) -> int:
    from gpulockd.trial import running, showing
    from gpulockd.trial.chosen import changed
    from gpulockd.trial.load import Load
    from gpulockd.trial.verdict import as_json

    baseline, candidate = _choose(args)
    paths = changed(baseline, candidate)
    if not paths:
        raise CommandError(f"{args.baseline} and {args.candidate} say the same", "name two that differ", USAGE)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    load = Load(gpus=args.gpus, rounds=rounds, scale=args.scale)
    say(f"seed {args.seed}; about {_takes_s(load, polling=args.polling):.0f} s")
    try:
        verdict = asyncio.run(
            running.compare(
                baseline.tree,
                candidate.tree,
                load=load,
                mode="polling" if args.polling else "events",
                changed=paths,
                seed=args.seed,
                say=say,
            )
        )
    except GpuLockError as broke:
        raise CommandError(broke.message, "nothing was judged; what the trial started is ended", NEGATIVE) from None
    plain = as_json(verdict) | {
        "verdict": verdict.summary,
        "baseline_config": baseline.name,
        "candidate_config": candidate.name,
        "seed": args.seed,
        "rounds": rounds,
        "scale": args.scale,
    }
    recorded = None if args.no_record else _record(candidate, plain)
    if args.json:
        print(json.dumps(plain | {"digest": recorded}, indent=2, ensure_ascii=False))
    else:
        print(showing.text_of(verdict, baseline.name, candidate.name))
    return _code(verdict)


def _code(verdict: Verdict) -> int:
    return OK if verdict.passed else NEGATIVE


def _choose(args: Namespace) -> tuple[Chosen, Chosen]:
    from gpulockd.trial.chosen import choose

    live = _live()
    try:
        return choose(args.baseline, live), choose(args.candidate, live)
    except ConfigError as wrong:
        raise CommandError(f"bench config: {wrong.message}", HINT, USAGE) from None


def _live() -> dict[str, Any] | None:
    """All settings in force, as the local daemon says; None if none answers."""
    with suppress(CommandError), http.find() as daemon:
        settings = daemon.get("/api/v1/config").get("settings")
        return settings if isinstance(settings, dict) else None
    return None


def _record(candidate: Chosen, verdict: dict[str, Any]) -> str | None:
    """Tell the local daemon the verdict; the digest under which it remembers it, or None if it does not."""
    if candidate.change is None:
        say(f"the verdict is not recorded: {candidate.name!r} is no change that could be made")
        return None
    try:
        with http.find() as daemon:
            noted = daemon.ask("POST", RECORDED_AT, {"tree": candidate.change, "verdict": verdict})
    except CommandError as wrong:
        say(f"the verdict is not recorded: {wrong.what}")
        return None
    digest = str(noted.get("digest", ""))
    say(f"recorded for {digest}")
    return digest


def _takes_s(load: Load, *, polling: bool) -> float:
    """About how long a trial takes (in seconds)."""
    pause_s = 0.5 if polling else 0.0
    return 15.0 + 2.0 * load.rounds * (load.round_s(polling=polling) + pause_s)


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"signal {number} in process {os.getpid()}")
