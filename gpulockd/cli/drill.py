"""`gpulockd drill`: a recovery exercise on a private store with simulated cards."""

from __future__ import annotations

import asyncio
import json
import signal
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpulockd.cli.options import Parser, duration
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, say
from gpulockd.errors import GpuLockError

if TYPE_CHECKING:  # names of types only: they load the daemon's packages
    from gpulockd.trial.drill.exercise import Report


def parser() -> Parser:
    """The options."""
    made = Parser(
        "drill",
        "Kill a holder, stop one beyond its limit, kill daemon and store, cut the store off, empty it, and roll a "
        "configuration back: on a private daemon with simulated cards. Says how long each recovery took and what is "
        "promised. The running daemon is not touched. Exit code 0: all promises kept, 1: not.",
    )
    made.add_argument("--quick", action="store_true", help="short times of the daemon: about 20 s instead of a minute")
    made.add_argument("--slack", type=duration, metavar="TIME", help="what a busy machine may add; default 2s")
    made.add_argument("--keep", action="store_true", help="leave the folder with the private daemon's log")
    made.add_argument("--plant", action="store_true", help="break one promise on purpose, to see a drill fail")
    made.json_flag()
    return made


def main(words: Sequence[str]) -> int:
    """Hold the exercise."""
    args = parser().parse_args(words)
    try:
        report = asyncio.run(_exercise(args))
    except ImportError as missing:
        what = f"a drill needs the package {missing.name!r}"
        raise CommandError(what, "pip install 'gpulockd[server]'", USAGE) from None
    except GpuLockError as broke:
        raise CommandError(broke.message, "nothing was measured; what the drill started is ended", NEGATIVE) from None
    except asyncio.CancelledError:
        raise CommandError("the drill was ended", "what it started is ended too", NEGATIVE) from None
    _print(report, as_json=args.json)
    return OK if report.ok else NEGATIVE


async def _exercise(args: Namespace) -> Report:
    from msgspec import structs

    from gpulockd.trial.drill import exercise, terms

    chosen = terms.QUICK if args.quick else terms.DEFAULTS
    if args.slack is not None:
        chosen = structs.replace(chosen, slack=args.slack)
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    return await exercise.exercise(chosen, keep=args.keep, plant=args.plant, say=say)


def _print(report: Report, *, as_json: bool) -> None:
    from gpulockd.trial.drill import exercise

    if as_json:
        print(json.dumps(exercise.as_json(report), indent=2, ensure_ascii=False))
    else:
        print(exercise.text_of(report))
