"""`gpulockd run`: wait for a GPU, then run a command that holds it."""

from __future__ import annotations

import os
import signal
import time
from argparse import REMAINDER, ArgumentTypeError, Namespace
from collections.abc import Sequence

from gpulockd.cli import elsewhere, http, report
from gpulockd.cli.child import NOT_FOUND, NOT_RUNNABLE, Mask, Run, refusal_of
from gpulockd.cli.environment import of_run
from gpulockd.cli.keeping import Keeping, give_back
from gpulockd.cli.lining import Interrupted, Line, NotGranted
from gpulockd.cli.options import Parser, checked, duration
from gpulockd.cli.processes import program_of, signal_of, this_process
from gpulockd.cli.talk import CommandError, complain, say
from gpulockd.cli.wish import Grant, Wish, inherited_pair
from gpulockd.cli.wrapper import Wrapper, block_signals, ring
from gpulockd.errors import ConfigError, GpuLockError, ImpossibleRequest
from gpulockd.units import check_key, format_duration, parse_duration_s, parse_memory_mib

BUSY, WAITED_TOO_LONG, OWN_FAILURE = 75, 124, 125
UNLIMITED_S = 1e9
"""A limit beyond every job's life (in seconds): what `--timeout none` asks for."""
SCARCELY_S = 1e8
"""From here on a limit is none that anybody waits for (in seconds)."""
SHORTEST_LIMIT_S = 0.05
MOST_GPUS = 64

WAIT_VARIABLE = "GPU_LOCK_MAX_WAIT_TIME"
NO_WAIT_HINT = "leave --no-wait out to wait for it; 'gpulockd status' shows who holds it"

_CODES = {"busy": BUSY, "timeout": WAITED_TOO_LONG}
_USAGE = "gpulockd run [options] -- COMMAND [ARGUMENT …]"


def main(words: Sequence[str]) -> int:
    """Run a command with a GPU and return its exit code, or why it was not run."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    args = _parse(words)
    began = time.monotonic()
    outcome, code, grant, granted_at = "failed", OWN_FAILURE, None, None
    wish: Wish | None = None
    try:
        missing = refusal_of(args.command[0])
        if missing is not None:  # nobody waits an hour to learn that
            outcome, code = _cannot_run(args.command[0], missing)
            return code
        _run_unlocked_if_disabled(args.command)
        wish = _wish(args)
        daemon = http.find()
        elsewhere.warn(daemon.path)
        grant = Line(daemon, wish, quiet=args.quiet).wait()
        granted_at = time.monotonic()
        block_signals()
        outcome, code = _hold(args, wish, grant, daemon.path, mask)
    except Interrupted as interrupted:
        outcome, code = "interrupted", 128 + interrupted.number
        if wish is not None and interrupted.grant is not None:
            give_back(interrupted.grant, wish)
    except NotGranted as refused:
        if refused.kind == "busy" and args.no_wait:
            refused.hint = NO_WAIT_HINT
        complain(refused)
        outcome, code = refused.kind, _CODES.get(refused.kind, OWN_FAILURE)
    except CommandError as wrong:
        complain(wrong)
    except GpuLockError as wrong:
        say(wrong.message)
    finally:
        if args.report:
            now = time.monotonic()
            held_s = now - granted_at if granted_at else 0.0
            waited_s = grant.waited_s if grant else now - began
            report.write(args.report, outcome, code, grant=grant, waited_s=waited_s, held_s=held_s)
    return code


def _run_unlocked_if_disabled(command: list[str]) -> None:
    """Become the command, where the environment says that no lock is wanted."""
    if os.environ.get("GPULOCKD_DISABLE") == "1":
        say("GPULOCKD_DISABLE=1: the command runs without a lock, and nothing is reported")
        os.execvp(command[0], command)


def _hold(args: Namespace, wish: Wish, grant: Grant, socket: str, mask: Mask) -> tuple[str, int]:
    """Run the command under its lease; return the outcome and the exit code."""
    if not args.quiet:
        say(_begins(grant, args.timeout))
    try:
        run = Run(args.command, of_run(os.environ, grant, socket), mask)
        keeping = Keeping(grant, wish, ring)
        run.start()
    except OSError as wrong:
        give_back(grant, wish)
        return _cannot_run(args.command[0], wrong)
    except BaseException:
        give_back(grant, wish)
        raise
    keeping.start()
    began = time.monotonic()
    limit_s = None if args.timeout is None or args.timeout >= UNLIMITED_S else args.timeout
    wrapper = Wrapper(run, keeping, limit_s=limit_s, soft_signal=args.soft_signal)
    code = wrapper.wait()
    is_released = keeping.release(tell=wrapper.outcome == "exited")
    if is_released and not args.quiet and not grant.is_member and wrapper.outcome != "lost":
        say(f"released {grant.shown} after {format_duration(time.monotonic() - began)}")
    return wrapper.outcome, code


def _cannot_run(program: str, wrong: OSError) -> tuple[str, int]:
    missing = isinstance(wrong, FileNotFoundError)
    say(f"cannot run {program!r}: {'not found' if missing else (wrong.strerror or wrong)}")
    return ("not_found", NOT_FOUND) if missing else ("not_runnable", NOT_RUNNABLE)


def _begins(grant: Grant, timeout_s: float | None) -> str:
    if grant.is_member:
        return f"joins the lease of the outer run on {grant.names}"
    return f"got {grant.shown} after {format_duration(grant.waited_s)}, {_limits(grant.limits_s, timeout_s)}"


def _limits(limits_s: tuple[float, float, float] | None, timeout_s: float | None) -> str:
    """The limits of a run: "limits warning 30:00, soft 1:00:00, hard 2:00:00"."""
    if timeout_s is not None and timeout_s >= UNLIMITED_S:
        return "no limits"
    if not limits_s:
        return "limits as configured" if timeout_s is None else f"limits hard {format_duration(timeout_s)}"
    warning_s, soft_s, hard_s = limits_s
    named = {"warning": (warning_s, soft_s), "soft": (soft_s, hard_s), "hard": (hard_s, SCARCELY_S)}
    # A level that is not before the next one never acts.
    told = [f"{name} {format_duration(own_s)}" for name, (own_s, next_s) in named.items() if own_s < next_s]
    return f"limits {', '.join(told)}" if told else "no limits"


def _parse(words: Sequence[str]) -> Namespace:
    parser = Parser(
        "run", "Wait for a GPU, then run a command that holds it until it ends.", usage_code=OWN_FAILURE, usage=_USAGE
    )
    parser.add_argument("-n", type=int, dest="count", metavar="N", help="how many GPUs, all or none; default 1")
    parser.add_argument("--gpu", type=checked(_gpus), metavar="0,2", help="these GPUs; default any")
    parser.add_argument("--memory", type=checked(_memory), metavar="8G", help="share a card within this much memory")
    parser.add_argument("-p", "--priority", type=int, default=0, metavar="PRIO", help="-100 to 100, higher goes first")
    parser.add_argument("--wait", type=duration, metavar="30m", help="longest wait; default as configured")
    parser.add_argument("--no-wait", action="store_true", help="exit with 75 if it is not free now")
    parser.add_argument("--timeout", type=checked(_timeout), metavar="2h|none", help="longest hold: then it is ended")
    parser.add_argument("--task", metavar="NAME", help="what the holder is called; default: the command's name")
    parser.add_argument("--report", metavar="FILE", help="write outcome, lease, times and exit code there as JSON")
    parser.add_argument("--soft-signal", type=_signal, default=int(signal.SIGTERM), metavar="TERM", help="asks to stop")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what goes wrong")
    parser.add_argument("command", nargs=REMAINDER, metavar="-- COMMAND", help="the command and its arguments")
    args = parser.parse_args(words)
    if args.command[:1] == ["--"]:
        del args.command[0]
    if not args.command:
        parser.error("no command; write it after '--', such as 'gpulockd run -- python train.py'")
    if args.no_wait and args.wait is not None:
        parser.error("--wait and --no-wait contradict each other")
    if args.count is not None and not 1 <= args.count <= MOST_GPUS:
        parser.error(f"-n {args.count}: ask for 1 to {MOST_GPUS} GPUs")
    if args.count is not None and args.gpu is not None and args.count != len(args.gpu):
        parser.error(f"-n {args.count} does not fit the {len(args.gpu)} GPUs of --gpu; leave -n out")
    if not -100 <= args.priority <= 100:
        parser.error(f"-p {args.priority}: say a whole number from -100 to 100")
    if args.report:
        report.check(args.report, OWN_FAILURE)
    return args


def _wish(args: Namespace) -> Wish:
    task = args.task or program_of(args.command)
    return Wish(
        gpu_count=args.count if args.gpu is None else None,
        gpus=args.gpu,
        memory=args.memory,
        priority=args.priority,
        wait_s=0.0 if args.no_wait else args.wait,
        usual_wait_s=_usual_wait_s(),
        limit_s=args.timeout,
        task=task,
        inside=inherited_pair(),
        process=this_process(program_of(args.command)),
        session=os.urandom(16).hex(),
        ticket=os.urandom(16).hex(),
    )


def _usual_wait_s() -> float | None:
    """The wait limit that this environment says (in seconds); None: what the pool says."""
    said = os.environ.get(WAIT_VARIABLE)
    return parse_duration_s(said, WAIT_VARIABLE) if said else None


def _gpus(text: str) -> tuple[int | str, ...] | None:
    if text == "any":
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ImpossibleRequest(f"{text!r} names no GPU; write an index, such as 0 or 0,2")
    return tuple(int(part) if part.isdigit() else check_key(part) for part in parts)


def _memory(text: str) -> str:
    parse_memory_mib(text, "--memory")
    return text


def _timeout(text: str) -> float:
    if text == "none":
        return UNLIMITED_S
    limit_s = parse_duration_s(text, "duration")
    if limit_s < SHORTEST_LIMIT_S:
        raise ConfigError(f"{text!r} is shorter than {SHORTEST_LIMIT_S:g} s; for no limit write --timeout none")
    return limit_s


def _signal(text: str) -> int:
    try:
        return signal_of(text)
    except ValueError:
        raise ArgumentTypeError(f"unknown signal {text!r}") from None
