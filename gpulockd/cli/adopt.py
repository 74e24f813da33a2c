"""`gpulockd adopt`: a process that runs already becomes the holder of a GPU that is free.

It never waits: the process uses its GPU now, so a place in the queue would promise what it does not keep.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Sequence

from gpulockd.cli import http
from gpulockd.cli.acquire import environment_of, granted, wish_of
from gpulockd.cli.asking import add_gpus, check_gpus
from gpulockd.cli.handing import check_stdout, hand_over
from gpulockd.cli.lining import Interrupted, NotGranted
from gpulockd.cli.options import Parser
from gpulockd.cli.parents import name_of_process
from gpulockd.cli.processes import look
from gpulockd.cli.records import name_of
from gpulockd.cli.talk import NEGATIVE, OK, USAGE, CommandError, say
from gpulockd.cli.wish import Grant
from gpulockd.errors import GpuLockError

VISIBLE = b"CUDA_VISIBLE_DEVICES="
MOST_OF_ENVIRONMENT = 1 << 20


def main(words: Sequence[str]) -> int:
    """Make a process a holder; exit code 1 if the GPU is held by another, or there is no such process."""
    args = _parse(words)
    check_stdout("adopt")
    process = look(args.pid)
    if process is None or process.is_dead:
        raise CommandError(f"there is no process {args.pid}", "'ps' lists them", NEGATIVE)
    daemon = http.find()
    _refuse_a_holder(daemon, args.pid)
    guessed = args.gpu is None and args.count is None
    try:
        if guessed:
            args.gpu = _visible_to(args.pid)
        grant = granted(daemon, wish_of(args, daemon, args.pid), quiet=True)
    except NotGranted as refused:
        if refused.kind == "busy":
            refused.hint = "adopt it when that GPU is free, or name another with --gpu; 'gpulockd status' lists them"
        raise
    except GpuLockError as wrong:
        raise CommandError(f"adopt: {wrong.message}", "name its GPU with --gpu", USAGE) from None
    except Interrupted as interrupted:
        return 128 + interrupted.number
    hand_over(daemon, grant, lambda: _print(grant, args))
    if not args.quiet and not args.json:
        say(f"{name_of_process(args.pid)} (pid {args.pid}) holds {grant.shown} as long as it lives")
        if guessed and args.gpu is None:
            say("which GPU it uses cannot be told from its environment; if it is another, release this, say --gpu")
    return OK


def _print(grant: Grant, args: Namespace) -> None:
    if args.json:
        said = {"lease": grant.lease, "token": grant.token, "pool": grant.pool, "gpus": list(grant.gpus)}
        print(json.dumps(said | {"pid": args.pid, "env": dict(environment_of(grant))}, indent=2))
    else:
        print(grant.lease)


def _parse(words: Sequence[str]) -> Namespace:
    parser = Parser("adopt", "Make a process that runs already the holder of a free GPU, as long as it lives.")
    parser.add_argument("pid", type=int, metavar="PID", help="a process of yours; as root, of anybody")
    add_gpus(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="say only what goes wrong")
    parser.json_flag()
    args = parser.parse_args(words)
    if args.pid <= 1:
        parser.error(f"{args.pid}: name a process of yours")
    check_gpus(parser, args)
    args.priority, args.wait, args.no_wait, args.ttl = 0, None, True, None
    return args


def _refuse_a_holder(daemon: http.Daemon, pid: int) -> None:
    """:raises CommandError: if the process holds something already"""
    with daemon:
        leases = daemon.get("/api/v1/leases")["leases"]
    held = [lease for lease in leases if lease.get("pid") == pid and lease.get("pid_seen", True)]
    if held and _is_ours(pid):  # of another user's the daemon says so
        gpus = ", ".join(f"GPU {name_of(key)}" for lease in held for key in lease["gpus"])
        raise CommandError(f"pid {pid} holds {gpus} already (lease {held[0]['id']})", "nothing is to be done", NEGATIVE)


def _is_ours(pid: int) -> bool:
    """Whether this user may speak for that process."""
    try:
        return os.geteuid() in (0, os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return True


def _visible_to(pid: int) -> tuple[int | str, ...] | None:
    """The GPUs that the process was told to use, as its environment says them; None if it says nothing."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read(MOST_OF_ENVIRONMENT).split(b"\0")
    except OSError:
        return None
    said = next((one[len(VISIBLE) :] for one in variables if one.startswith(VISIBLE)), b"")
    parts = [part.strip() for part in os.fsdecode(said).split(",") if part.strip()]
    known = all(part.isdigit() or part.startswith(("GPU-", "MIG-")) for part in parts)
    return tuple(int(part) if part.isdigit() else part for part in parts) if parts and known else None
