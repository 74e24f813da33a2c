"""All of it at random, for real: a daemon, a store, six programs on two cards, and somebody who breaks things."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.evil import PROGRAMS, play
from tests.system.workers_started import SOAK

ROUNDS = 60 if SOAK else 1
EVIL_S = 60.0 if SOAK else 30.0


@pytest.mark.timeout(ROUNDS * (EVIL_S + 300))
async def test_a_random_evil_hour_breaks_no_rule(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Faults come together, in an order that nobody has thought of; the kernel's locks say who was on a card."""
    seed = int(os.environ.get("GPULOCKD_SEED") or secrets.randbelow(1 << 30))
    grants = faults = 0
    for number in range(seed, seed + ROUNDS):
        print(f"REPRO: GPULOCKD_SEED={number} pytest tests/faults/test_random.py")
        (folder := tmp_path / str(number)).mkdir()
        found = await play(folder, number, EVIL_S)
        assert not found.wrong, f"seed {number}: {found.wrong[:10]}\n{found.faults}"
        grants, faults = grants + found.grants, faults + len(found.faults)
    record_property("measured", f"{grants} turns under {faults} faults, seed {seed}")
    assert grants > PROGRAMS * ROUNDS
