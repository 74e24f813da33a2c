"""What `run`, `acquire` and `adopt` ask for: the options that they share, and the checks of what was said."""

from __future__ import annotations

import os
from argparse import Namespace

from gpulockd.cli import http
from gpulockd.cli.options import Parser, checked, duration
from gpulockd.errors import ConfigError, ImpossibleRequest
from gpulockd.units import check_key, check_plain, parse_duration_s, parse_memory_mib

UNLIMITED_S = 1e9
"""A limit beyond every job's life (in seconds): what `--timeout none` asks for."""
SHORTEST_LIMIT_S = 0.05
MOST_GPUS = 64

WAIT_VARIABLE = "GPU_LOCK_MAX_WAIT_TIME"
LIST_HINT = "'gpulockd status' lists the GPUs that there are"

_UUID = ("GPU-", "MIG-")


def add_gpus(parser: Parser) -> None:
    """Add the options that say which gpus, and how long the hold may be."""
    parser.add_argument("-n", type=int, dest="count", metavar="N", help="how many GPUs, all or none; default 1")
    parser.add_argument("--gpu", type=checked(_gpus), metavar="0,2", help="these GPUs, or UUIDs; default any")
    parser.add_argument("--memory", type=checked(_memory), metavar="8G", help="share a card within this much memory")
    parser.add_argument("--timeout", type=checked(_timeout), metavar="2h|none", help="longest hold: then it is ended")
    called = "what the holder is called; default: the program's name"
    parser.add_argument("--task", type=checked(_task), metavar="NAME", help=called)


def add_wait(parser: Parser, *, busy_code: int) -> None:
    """Add the options that say how to wait in line."""
    parser.add_argument("-p", "--priority", type=int, default=0, metavar="PRIO", help="-100 to 100, higher goes first")
    parser.add_argument("--wait", type=duration, metavar="30m", help="longest wait; default as configured")
    parser.add_argument("--no-wait", action="store_true", help=f"exit with {busy_code} if it is not free now")


def check(parser: Parser, args: Namespace) -> None:
    """Refuse what contradicts itself."""
    if args.no_wait and args.wait is not None:
        parser.error("--wait and --no-wait contradict each other")
    check_gpus(parser, args)
    if not -100 <= args.priority <= 100:
        parser.error(f"-p {args.priority}: say a whole number from -100 to 100")


def check_gpus(parser: Parser, args: Namespace) -> None:
    """Refuse gpus that contradict each other."""
    if args.count is not None and not 1 <= args.count <= MOST_GPUS:
        parser.error(f"-n {args.count}: ask for 1 to {MOST_GPUS} GPUs")
    if args.count is not None and args.gpu is not None and args.count != len(args.gpu):
        parser.error(f"-n {args.count} does not fit the {len(args.gpu)} GPUs of --gpu; leave -n out")


def with_keys(daemon: http.Daemon, gpus: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
    """Return the gpus with the keys of those that were named by their UUID, or the beginning of it.

    :raises ImpossibleRequest: if the pool has none of that UUID, or several
    :raises DaemonDown: if the daemon does not answer
    """
    if gpus is None or not any(_is_uuid(gpu) for gpu in gpus):
        return gpus
    with daemon:
        known = {str(gpu["uuid"]): str(gpu["key"]) for gpu in daemon.get("/api/v1/gpus")["gpus"] if gpu.get("uuid")}
    return tuple(_key_of(str(gpu), known) if _is_uuid(gpu) else gpu for gpu in gpus)


def usual_wait_s() -> float | None:
    """The wait limit that this environment says (in seconds); None: what the pool says."""
    said = os.environ.get(WAIT_VARIABLE)
    return parse_duration_s(said, WAIT_VARIABLE) if said else None


def _is_uuid(gpu: int | str) -> bool:
    return isinstance(gpu, str) and gpu.startswith(_UUID)


def _key_of(uuid: str, known: dict[str, str]) -> str:
    found = [key for name, key in known.items() if name.startswith(uuid)]
    if len(found) != 1:
        what = "no GPU" if not found else f"{len(found)} GPUs"
        raise ImpossibleRequest(f"{what} of this pool has the UUID {uuid!r}; {LIST_HINT}")
    return found[0]


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


def _task(text: str) -> str:
    return check_plain(text, "--task")


def _timeout(text: str) -> float:
    if text == "none":
        return UNLIMITED_S
    limit_s = parse_duration_s(text, "duration")
    if limit_s < SHORTEST_LIMIT_S:
        raise ConfigError(f"{text!r} is shorter than {SHORTEST_LIMIT_S:g} s; for no limit write --timeout none")
    return limit_s
