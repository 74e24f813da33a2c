"""`gpulockd run`: wait for a GPU, then run a command that holds it."""

from __future__ import annotations

import os
import signal
import time
from argparse import REMAINDER, ArgumentTypeError, Namespace
from collections.abc import Sequence

from gpulockd.cli import elsewhere, http, report
from gpulockd.cli.asking import UNLIMITED_S, add_gpus, add_wait, check, usual_wait_s, with_keys
from gpulockd.cli.child import NOT_FOUND, NOT_RUNNABLE, Mask, Run, refusal_of
from gpulockd.cli.environment import of_run
from gpulockd.cli.hooks import Event, Hook
from gpulockd.cli.keeping import Keeping, give_back
from gpulockd.cli.lining import Interrupted, Line, NotGranted
from gpulockd.cli.options import Parser
from gpulockd.cli.processes import has_children, program_of, signal_of, this_process
from gpulockd.cli.records import is_only_drained
from gpulockd.cli.report import Account
from gpulockd.cli.talk import CommandError, complain, say
from gpulockd.cli.wish import Grant, Wish, inherited_pair
from gpulockd.cli.wrapper import Wrapper, block_signals, ring
from gpulockd.errors import GpuLockError
from gpulockd.units import format_duration

BUSY, WAITED_TOO_LONG, OWN_FAILURE = 75, 124, 125
SCARCELY_S = 1e8
"""From here on a limit is none that anybody waits for (in seconds)."""
SHELL = "/bin/sh"

NO_WAIT_HINT = "leave --no-wait out to wait for it; 'gpulockd status' shows who holds it"

_USAGE = "gpulockd run [options] -- COMMAND [ARGUMENT …]"


def main(words: Sequence[str]) -> int:
    """Run a command with a GPU and return its exit code, or why it was not run."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    args = _parse(words)
    hook, account = Hook(args.hook, mask), Account(OWN_FAILURE)
    try:
        return _run(args, hook, account, mask)
    except CommandError as wrong:
        complain(wrong)
    except GpuLockError as wrong:
        say(wrong.message)
    finally:
        said = account.said()
        if args.report:
            report.write(args.report, said)
        hook.call("ended", said, os.environ)
        hook.wait()
    return account.code


def _run(args: Namespace, hook: Hook, account: Account, mask: Mask) -> int:
    """Wait, hold, and return the exit code.

    :raises CommandError: if there is no daemon, or nothing can be asked for so
    :raises GpuLockError: if it cannot be asked for
    """
    account.task = args.task or program_of(args.command)
    missing = refusal_of(args.command[0])
    if missing is not None:  # nobody waits an hour to learn that
        return account.ended(*_cannot_run(args.command[0], missing))
    _run_unlocked_if_disabled(args.command)
    wish: Wish | None = None
    try:
        daemon = http.find()
        elsewhere.warn(daemon.path)
        wish = _wish(args, daemon, account.task)
        grant = Line(daemon, wish, quiet=args.quiet).wait()
        account.granted(grant)
        block_signals()
        return account.ended(*_hold(args, wish, account, hook, daemon.path, mask))
    except Interrupted as interrupted:
        if wish is not None and interrupted.grant is not None:
            give_back(interrupted.grant, wish)
        return account.ended("interrupted", 128 + interrupted.number)
    except NotGranted as refused:
        if refused.kind == "busy" and args.no_wait and not is_only_drained(refused.what):
            refused.hint = NO_WAIT_HINT
        complain(refused)
        codes = {"busy": args.busy_code, "timeout": WAITED_TOO_LONG}
        return account.ended(refused.kind, codes.get(refused.kind, OWN_FAILURE))


def _run_unlocked_if_disabled(command: list[str]) -> None:
    """Become the command, where the environment says that no lock is wanted."""
    if os.environ.get("GPULOCKD_DISABLE") == "1":
        say("GPULOCKD_DISABLE=1: the command runs without a lock, and nothing is reported")
        os.execvp(command[0], command)


def _hold(args: Namespace, wish: Wish, account: Account, hook: Hook, socket: str, mask: Mask) -> tuple[str, int]:
    """Run the command under its lease; return the outcome and the exit code."""
    grant = account.grant
    assert grant is not None
    if not args.quiet:
        say(_begins(grant, args.timeout))
    try:
        env = of_run(os.environ, grant, socket)
        run = Run(args.command, env, mask)
        keeping = Keeping(grant, wish, ring, http.Daemon(socket))
        # Without the token what a hook starts does not join the lease: it would keep on when the run is over.
        of_hook = {name: value for name, value in env.items() if name != "GPULOCKD_TOKEN"}
        hook.call("granted", account.so_far(), of_hook)  # before the start, so that it is none of the run's
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

    def tell(event: Event, outcome: str) -> None:
        run.spare(hook.call(event, account.so_far(outcome), of_hook))

    wrapper = Wrapper(run, keeping, limit_s=limit_s, soft_signal=args.soft_signal, tell=tell)
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
    add_gpus(parser)
    add_wait(parser, busy_code=BUSY)
    parser.add_argument("-E", type=int, dest="busy_code", default=BUSY, metavar="CODE", help="--no-wait exits with it")
    parser.add_argument("--report", metavar="FILE", help="write outcome, lease, times and exit code there as JSON")
    parser.add_argument("--hook", metavar="LINE", help="shell line for granted, stopping, lost, ended; JSON on stdin")
    parser.add_argument("--soft-signal", type=_signal, default=int(signal.SIGTERM), metavar="TERM", help="asks to stop")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what goes wrong")
    parser.add_argument("-c", dest="line", metavar="LINE", help="run this line with the shell instead of a command")
    parser.add_argument("command", nargs=REMAINDER, metavar="-- COMMAND", help="the command and its arguments")
    args = parser.parse_args(words)
    if args.command[:1] == ["--"]:
        del args.command[0]
    if args.line is not None:
        # As with `sh -c`, what follows is $0, $1, …
        args.command = [SHELL, "-c", args.line, *args.command]
    if not args.command:
        parser.error("no command; write it after '--', such as 'gpulockd run -- python train.py'")
    check(parser, args)
    if not 0 <= args.busy_code <= 255:
        parser.error(f"-E {args.busy_code}: an exit code is 0 to 255")
    if args.report:
        report.check(args.report, OWN_FAILURE)
    return args


def _wish(args: Namespace, daemon: http.Daemon, task: str) -> Wish:
    gpus = with_keys(daemon, args.gpu)
    return Wish(
        gpu_count=args.count if gpus is None else None,
        gpus=gpus,
        memory=args.memory,
        priority=args.priority,
        wait_s=0.0 if args.no_wait else args.wait,
        usual_wait_s=usual_wait_s(),
        limit_s=args.timeout,
        task=task,
        inside=inherited_pair(),
        process=this_process(program_of(args.command)),
        session=os.urandom(16).hex(),
        ticket=os.urandom(16).hex(),
        spares_older=has_children(),
    )


def _signal(text: str) -> int:
    try:
        return signal_of(text)
    except ValueError:
        raise ArgumentTypeError(f"unknown signal {text!r}") from None
