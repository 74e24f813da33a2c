"""`gpulockd acquire`: hold a GPU for a process that runs already, such as this shell, or for a time.

The daemon keeps the lease: for as long as the process lives, which the kernel tells it, or until the time is over.
"""

from __future__ import annotations

import json
import os
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence

from gpulockd.cli import elsewhere, http
from gpulockd.cli.asking import UNLIMITED_S, add_gpus, add_wait, check, usual_wait_s, with_keys
from gpulockd.cli.handing import check_stdout, give_back, hand_over, withdraw
from gpulockd.cli.lining import Interrupted, Line, NotGranted
from gpulockd.cli.options import Parser, duration
from gpulockd.cli.parents import caller_of, name_of_process
from gpulockd.cli.processes import this_process
from gpulockd.cli.records import is_only_drained, name_of
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, say
from gpulockd.cli.wish import Grant, Wish, inherited_pair
from gpulockd.errors import GpuLockError
from gpulockd.units import format_duration

_URL = "GPULOCKD_REDIS_URL"
PID_HINT = "say --pid $$ for the shell itself, or --ttl 10m for a time that 'gpulockd renew' prolongs"
HELD_HINT = "use it, or 'gpulockd release LEASE' first; several GPUs are had by one call, such as -n 2"
HINTS = {
    "busy": "leave --no-wait out to wait for it; 'gpulockd status' shows who holds it",
}


def main(words: Sequence[str]) -> int:
    """Hold, print the lease, and return; exit code 1 if it is not granted."""
    args = _parse(words)
    pid = None if args.ttl is not None else args.pid or caller_of(os.getppid())
    if pid is not None and pid <= 1:
        raise CommandError("acquire: the program that calls this cannot be told", PID_HINT, USAGE)
    check_stdout("acquire")
    daemon = http.find()
    elsewhere.warn(daemon.path)
    refuse_what_is_held(daemon)
    try:
        grant = granted(daemon, wish_of(args, daemon, pid), quiet=args.quiet)
    except GpuLockError as wrong:
        raise CommandError(f"acquire: {wrong.message}", "", USAGE) from None
    except Interrupted as interrupted:
        return 128 + interrupted.number
    hand_over(daemon, grant, lambda: _print(grant, args, pid))
    if not args.quiet:
        say(_told(grant, args, pid))
    return OK


def wish_of(args: Namespace, daemon: http.Daemon, pid: int | None) -> Wish:
    """What is asked for, for the process `pid` or, without one, for a time.

    :raises GpuLockError: if it cannot be asked for so
    """
    gpus = with_keys(daemon, args.gpu)
    task = args.task or (name_of_process(pid) if pid is not None else "acquire")
    return Wish(
        gpu_count=args.count if gpus is None else None,
        gpus=gpus,
        memory=args.memory,
        priority=args.priority,
        wait_s=0.0 if args.no_wait else args.wait,
        usual_wait_s=usual_wait_s(),
        limit_s=args.timeout,
        task=task,
        inside=None,
        process=this_process(task),
        ticket=os.urandom(16).hex(),
        pid=pid,
        ttl_s=args.ttl,
    )


def granted(daemon: http.Daemon, wish: Wish, *, quiet: bool) -> Grant:
    """Wait in line for a lease that the daemon keeps.

    :raises NotGranted: if there will be none
    :raises Interrupted: if a signal came first; what was granted at the same moment is given back
    """
    line = Line(daemon, wish, quiet=quiet)
    try:
        return line.wait()
    except NotGranted as refused:
        if "no such process of yours" in refused.what:
            hint = "name a process of yours; where it runs in a container, use --ttl, or 'gpulockd run' there"
            raise CommandError(refused.what, hint, NEGATIVE) from None
        if "cannot be ended" in refused.what:
            hint = "name the process that uses the GPU, say --ttl 10m, or wrap it in 'gpulockd run'"
            raise CommandError(refused.what, hint, NEGATIVE) from None
        if refused.kind == "would_deadlock":
            refused.hint = HELD_HINT
        if refused.kind in HINTS and not wish.wait_s and not is_only_drained(refused.what):
            refused.hint = HINTS[refused.kind]
        raise
    except BaseException as why:
        # Nobody here knows how far the request has come: whatever its ticket has, or would get, is given back.
        if line.ticket:
            withdraw(daemon, line.ticket)
        elif isinstance(why, Interrupted) and why.grant is not None:
            give_back(daemon, why.grant)
        raise


def refuse_what_is_held(daemon: http.Daemon) -> None:
    """Who holds and waits for more may wait for ever.

    :raises CommandError: if this shell or an outer run holds a lease
    """
    pair = inherited_pair()
    if pair is None:
        return
    with daemon:
        leases = daemon.get("/api/v1/leases")["leases"]
    held = next((lease for lease in leases if (lease["id"], lease["token"]) == pair), None)
    if held is not None:
        gpus = ", ".join(f"GPU {name_of(key)}" for key in held["gpus"])
        raise CommandError(
            f"acquire: {gpus} is held here already (lease {held['id']})",
            HELD_HINT.replace("LEASE", "$GPULOCKD_LEASE"),
            NEGATIVE,
        )


def environment_of(grant: Grant) -> Mapping[str, str]:
    """What programs must find in their environment to use the GPUs under this lease, and to say how far they are."""
    return dict(sorted(grant.env.items()))


def _parse(words: Sequence[str]) -> Namespace:
    parser = Parser("acquire", "Hold a GPU for a process that runs, by default the shell that calls this.")
    add_gpus(parser)
    add_wait(parser, busy_code=NEGATIVE)
    parser.add_argument("--pid", type=int, metavar="PID", help="hold as long as this process of yours lives")
    parser.add_argument(
        "--ttl", type=duration, metavar="10m", help="hold for so long, unless 'gpulockd renew' is called"
    )
    parser.add_argument("--export", action="store_true", help="print the environment as lines for eval")
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what goes wrong")
    parser.json_flag()
    args = parser.parse_args(words)
    check(parser, args)
    if args.pid is not None and args.ttl is not None:
        parser.error("--pid and --ttl contradict each other: each says how long it is held")
    if args.pid is not None and args.pid <= 1:
        parser.error(f"--pid {args.pid}: name a process of yours, such as $$")
    if args.json and args.export:
        parser.error("--json and --export contradict each other")
    return args


def _told(grant: Grant, args: Namespace, pid: int | None) -> str:
    until = (
        f"as long as pid {pid} lives" if pid is not None else f"for {format_duration(args.ttl)} unless it is renewed"
    )
    hard_s = args.timeout or (grant.limits_s[2] if grant.limits_s else UNLIMITED_S)
    limit = f", at most {format_duration(hard_s)}" if hard_s < UNLIMITED_S else ""
    return f"holds {grant.shown} {until}{limit}"


def _print(grant: Grant, args: Namespace, pid: int | None) -> None:
    env = environment_of(grant)
    if args.export:
        for name, value in env.items():
            print(f"export {name}={shlex.quote(value)}")
        if _URL in os.environ:  # programs of this shell shall find the store of this lease
            print(f"unset {_URL}")
    elif args.json:
        said = {"lease": grant.lease, "token": grant.token, "pool": grant.pool, "gpus": list(grant.gpus)}
        said |= {"waited_s": grant.waited_s, "pid": pid, "ttl_s": args.ttl, "env": dict(env)}
        print(json.dumps(said, indent=2))
    else:
        print(grant.lease)
