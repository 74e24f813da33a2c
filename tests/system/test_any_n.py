"""Several gpus at once, memory budgets and single cards, all mixed: no deadlock, no starvation, no budget exceeded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest

from gpulockd.settings import QueueBlock
from tests.pools import CALM, GIB, QUICK, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until_blocking
from tests.system.history import Note, granted_twice, read_events, tickets_of, troubles
from tests.system.witness import CARD_GIB
from tests.system.workers_started import SOAK, Crew

FOR_S = 60 if SOAK else 6
HOLD_S = (0.0, 0.02)
HOLD_BACK_S = 0.5
SESSION = msgspec.structs.replace(CALM, claim_window=QUICK.claim_window)
"""Nobody is lost where the machine stops a program for seconds, and nobody waits for long for one that is stopped."""
PROCESSES = 8
WISHES = [
    {"count": 1},
    {"count": 2},
    {"count": 4},
    {"memory": "5GiB"},
    {"memory": "11GiB"},
    {"memory": "8GiB", "count": 2},
    {"gpus": [1, 3]},
]


@pytest.mark.slow
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_mixed_wants_all_get_their_turn(server: Server, pool: str, tmp_path: Path) -> None:
    """Invariants 1, 4 and 5: whoever wants all four cards is not passed for ever by those who want one."""
    gpus = simulated(4, memory_mib=CARD_GIB * GIB)
    offer(server, pool, gpus, session=SESSION, queue=QueueBlock(hold_back_after=HOLD_BACK_S))
    with Crew(tmp_path, server.url, pool, SESSION) as crew:
        names = [f"w{n}" for n in range(PROCESSES)]
        workers = crew.start("loop", *names, for_s=FOR_S, wishes=WISHES, hold_s=HOLD_S)
        for worker in workers:
            worker.finish(FOR_S + 60)
        notes = crew.notes()
        until_blocking(lambda: not snapshot(server, pool).leases)
    now = snapshot(server, pool)
    assert not troubles(notes)
    assert not granted_twice(tickets_of(read_events(server, pool)))
    assert [(g.used_mib, g.shared, g.exclusive) for g in now.gpus] == [(0, 0, None)] * 4
    served = Counter(note.key.partition("/")[0] for note in notes if note.what == "used")
    print(dict(served), f"longest wait {max(_waits_s(notes)):.2f} s")
    assert len(served) == len(WISHES)
    # Held back for its turn, a ticket waits for those before it and for the choices before its own, never for ever.
    # Where the machine stops a holder, all wait for it.
    assert max(_waits_s(notes)) < HOLD_BACK_S + 5.0 + 3 * max(_holds_s(notes))


def _waits_s(notes: list[Note]) -> list[float]:
    asked = {(note.who, note.key): note.at_s for note in notes if note.what == "ask"}
    return [note.at_s - asked[note.who, note.key] for note in notes if note.what == "enter"]


def _holds_s(notes: list[Note]) -> list[float]:
    """From entering to the end of the block, which takes 20 ms where nothing comes in between."""
    entered = {(note.who, note.key): note.at_s for note in notes if note.what == "enter"}
    return [note.at_s - entered[note.who, note.key] for note in notes if note.what == "left"]
