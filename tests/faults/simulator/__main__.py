"""`python -m tests.faults.simulator [--seeds N | --seconds N | --seed S]`: plays schedules, says which break a rule."""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.faults.simulator.play import BUGS, Outcome, play

BATCH = 250
COLLECT_EVERY = 25


def main() -> int:
    """Play; 1 if a rule was broken."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults.simulator", description=__doc__)
    asked.add_argument("--seeds", type=int, default=1000, help="how many schedules")
    asked.add_argument("--first", type=int, default=0, help="the first seed")
    asked.add_argument("--seed", type=int, help="only this one, and what was broken in it")
    asked.add_argument("--bug", choices=BUGS, default="", help="plant a bug: it must be found")
    asked.add_argument("--seconds", type=float, help="as many as there is time for, from a seed of the moment")
    asked.add_argument("--workers", type=int, default=1, help="processes that play; 0: one for each core")
    said = asked.parse_args()
    if said.seed is not None:
        return _show(play(said.seed, said.bug))
    began_s = time.monotonic()
    bad: list[Outcome] = []
    seeds = events = grants = 0
    virtual_s = 0.0
    with ProcessPoolExecutor(said.workers or os.cpu_count()) as workers:
        for batches in _shares(said, began_s):
            for found in workers.map(partial(played, bug=said.bug), batches):
                bad += found[0]
                events, grants, virtual_s = events + found[1], grants + found[2], virtual_s + found[3]
                for outcome in found[0]:
                    print(f"seed {outcome.seed}: {outcome.wrong[0]}", flush=True)
                    print(f"  REPRO: {replay(outcome.seed, said.bug)}", flush=True)
            seeds += sum(map(len, batches))
    took_s = time.monotonic() - began_s
    print(
        f"{seeds} schedules, {len(bad)} broken, {grants} grants, {events} events; {took_s:.1f} s, "
        f"{seeds / took_s:.0f} schedules a second, {virtual_s / took_s:.0f} times real time"
    )
    return 1 if bad else 0


def _shares(said: argparse.Namespace, began_s: float) -> Iterator[list[range]]:
    """The seeds to be played, in batches: all at once, or one share after the other until the time is over."""
    if said.seconds is None:
        firsts = range(said.first, said.first + said.seeds, BATCH)
        yield [range(first, min(first + BATCH, said.first + said.seeds)) for first in firsts]
        return
    size, first = BATCH // 5, said.first or random.randrange(1 << 40)
    while time.monotonic() - began_s < said.seconds:
        share = [range(first + n * size, first + (n + 1) * size) for n in range(2 * (os.cpu_count() or 1))]
        first = share[-1].stop
        yield share


def played(seeds: Iterable[int], bug: str = "") -> tuple[list[Outcome], int, int, float]:
    """Play some seeds. Returns the broken ones, and the events, grants and virtual seconds of all."""
    bad, events, grants, virtual_s = [], 0, 0, 0.0
    gc.freeze()
    gc.disable()  # a schedule is thrown away whole: looking for cycles while it plays costs a third of the time
    for number, seed in enumerate(seeds):
        if number % COLLECT_EVERY == 0:
            gc.collect()
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
