"""The protocol under virtual time: some thousand schedules break no rule, and each planted bug is found."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import pytest

from tests.faults.simulator.__main__ import replay
from tests.faults.simulator.play import BUGS, Outcome, play
from tests.system.workers_started import SOAK

SCHEDULES = 100_000 if SOAK else 300
RATES = 20_000 if SOAK else 80
FIRST = int(os.environ.get("GPULOCKD_SEED") or 0)
MOST = 300
"""Schedules within which a planted bug is found."""


def told(outcome: Outcome, bug: str = "") -> str:
    """What is wrong with a schedule, and how to play it again."""
    return f"seed {outcome.seed}: {outcome.wrong}\nREPRO: {replay(outcome.seed, bug)}"


@pytest.mark.timeout(7200 if SOAK else 300)
def test_no_schedule_breaks_a_rule(record_property: Callable[[str, object], None]) -> None:
    """Deaths, stops, partitions, restarts, lost data and late messages, in orders that nobody would write down."""
    grants = 0
    for seed in range(FIRST, FIRST + SCHEDULES):
        outcome = play(seed)
        assert not outcome.wrong, told(outcome)
        grants += outcome.grants
    record_property("measured", f"{SCHEDULES} schedules, {grants} grants")
    assert grants > SCHEDULES


@pytest.mark.timeout(7200 if SOAK else 300)
def test_clocks_of_different_rates_keep_their_distance(record_property: Callable[[str, object], None]) -> None:
    """A holder whose clock is slow gives up before a store whose clock is fast has given its gpu to the next."""
    for seed in range(FIRST, FIRST + RATES):
        outcome = play(seed, rates=0.1)
        assert not outcome.wrong, told(outcome)
    record_property("measured", f"{RATES} schedules, every clock 10 % fast or slow")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    """A simulator that finds nothing in a broken protocol proves nothing of a sound one."""
    outcomes = (play(seed, bug) for seed in range(MOST))
    found = next((outcome for outcome in outcomes if outcome.wrong), None)
    assert found is not None, f"{BUGS[bug]}: not found in {MOST} schedules"


def test_a_seed_plays_the_same_schedule_again() -> None:
    """A failure that cannot be repeated cannot be understood."""
    for seed in itertools.islice(itertools.count(FIRST), 5):
        assert play(seed) == play(seed)
