"""`python -m tests.faults.simulator --seeds N [--seed S] [--bug NAME]`: plays schedules, says which break a rule."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.faults.simulator.play import BUGS, Outcome, play

BATCH = 250


def main() -> int:
    """Play; 1 if a rule was broken."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults.simulator", description=__doc__)
    asked.add_argument("--seeds", type=int, default=1000, help="how many schedules")
    asked.add_argument("--first", type=int, default=0, help="the first seed")
    asked.add_argument("--seed", type=int, help="only this one, and what was broken in it")
    asked.add_argument("--bug", choices=BUGS, default="", help="plant a bug: it must be found")
    asked.add_argument("--workers", type=int, default=1, help="processes that play")
    said = asked.parse_args()
    if said.seed is not None:
        return _show(play(said.seed, said.bug))
    began_s = time.monotonic()
    firsts = range(said.first, said.first + said.seeds, BATCH)
    batches = [range(first, min(first + BATCH, said.first + said.seeds)) for first in firsts]
    bad: list[Outcome] = []
    events = grants = 0
    virtual_s = 0.0
    with ProcessPoolExecutor(said.workers) as workers:
        for found in workers.map(partial(played, bug=said.bug), batches):
            bad += found[0]
            events, grants, virtual_s = events + found[1], grants + found[2], virtual_s + found[3]
            for outcome in found[0]:
                print(f"seed {outcome.seed}: {outcome.wrong[0]}\n  REPRO: {replay(outcome.seed, said.bug)}", flush=True)
    took_s = time.monotonic() - began_s
    print(
        f"{said.seeds} schedules, {len(bad)} broken, {grants} grants, {events} events; {took_s:.1f} s, "
        f"{said.seeds / took_s:.0f} schedules a second, {virtual_s / took_s:.0f} times real time"
    )
    return 1 if bad else 0


def played(seeds: Iterable[int], bug: str = "") -> tuple[list[Outcome], int, int, float]:
    """Play some seeds. Returns the broken ones, and the events, grants and virtual seconds of all."""
    bad, events, grants, virtual_s = [], 0, 0, 0.0
    for seed in seeds:
        outcome = play(seed, bug)
        events, grants, virtual_s = events + outcome.events, grants + outcome.grants, virtual_s + outcome.lasted_s
        if outcome.wrong:
            bad.append(outcome)
    return bad, events, grants, virtual_s


def replay(seed: int, bug: str = "") -> str:
    """The command that plays a seed again."""
    return f"python -m tests.faults.simulator --seed {seed}" + (f" --bug {bug}" if bug else "")


def _show(outcome: Outcome) -> int:
    for line in (*outcome.plan, *outcome.wrong):
        print(line)
    print(f"{outcome.grants} grants, {outcome.events} events, {outcome.lasted_s:.0f} virtual s")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
