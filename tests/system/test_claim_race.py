"""The doorbell rings and its winner is not there: it must not enter later, beside the one who came in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from tests.pools import GIB, QUICK, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until_blocking
from tests.system.history import granted_twice, read_events, tickets_of, token_breaks, troubles
from tests.system.witness import CARD_GIB
from tests.system.workers_started import SOAK, Crew, Started, passed, queued

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # rounds go on until the winner was passed over
    pytest.mark.parametrize("server", ["valkey"], indirect=True),
]

ROUNDS = 100 if SOAK else 10
SESSION = msgspec.structs.replace(QUICK, ttl=5.5)
AWAY_S = 1.2 * SESSION.claim_window
EARLY_S = 0.05
"""How long before the release, so that it begins before."""

LATEST_S = 0.003
"""How long after the release the winner is disturbed at the latest: before, while and after it confirms."""


@pytest.fixture
def crew(server: Server, pool: str, tmp_path: Path) -> Iterator[Crew]:
    """Three obedient workers before one gpu; afterwards the rules must hold."""
    offer(server, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=SESSION)
    with Crew(tmp_path, server.url, pool, SESSION) as crew:
        crew.obedient("holder", "winner", "next")
        yield crew
        server.resume()
        notes, tickets = crew.notes(), tickets_of(read_events(server, pool))
        until_blocking(lambda: not snapshot(server, pool).leases)
    assert not troubles(notes)
    assert not token_breaks(notes)
    assert not granted_twice(tickets)


def stop_the_winner(server: Server, winner: Started) -> Callable[[], object]:
    """Freeze its process; returns how it goes on."""
    winner.stop()
    return winner.resume


def stop_the_server(server: Server, winner: Started) -> Callable[[], object]:
    """Freeze the server, as a long script or a full disk would."""
    server.pause()
    return server.resume


def block_the_loop(server: Server, winner: Started) -> Callable[[], object]:
    """A sister task of the winner blocks its event loop, as GPU code does. It goes on by itself."""
    winner.tell("block", "x", str(AWAY_S))
    return lambda: None


def _queue_up(server: Server, pool: str, crew: Crew, round: str) -> None:
    """The holder is in the body, the winner is first in the queue, the next one second."""
    crew.workers["holder"].ask(round)
    crew.workers["holder"].wait_for("use", round)
    for place, name in enumerate(("winner", "next"), 1):
        crew.workers[name].ask(round)
        queued(server, pool, place)


def _leave(worker: Started, round: str) -> None:
    worker.tell("leave", round)
    worker.wait_for("left", round)


@pytest.mark.parametrize("disturb", [stop_the_winner, stop_the_server, block_the_loop])
def test_a_winner_that_is_away_never_enters_beside_the_next(
    crew: Crew, server: Server, pool: str, disturb: Callable[[Server, Started], Callable[[], object]]
) -> None:
    """Invariants 1, 3 and 6: entering late put two holders into the body in 290 of 400 runs of an experiment."""
    holder, winner, next_one = crew.workers.values()
    passed_over = 0
    for round in map(str, range(5 * ROUNDS)):
        if passed_over and int(round) >= ROUNDS:
            break
        _queue_up(server, pool, crew, round)
        # Some rounds begin with it: however fast the winner is, it is passed over at least then.
        early = disturb is not stop_the_server and int(round) % 3 == 2
        go_on = disturb(server, winner) if early else None
        passed(EARLY_S if early else 0.0)
        holder.tell("leave", round)
        if go_on is None:
            passed(crew.random.uniform(0.0, LATEST_S))
            go_on = disturb(server, winner)
        passed(AWAY_S)
        if not server.paused:
            _wait_for_either(crew, round)
        go_on()
        _wait_for_either(crew, round)
        if next_one.find("use", round):
            # The winner is awake. It has heard its old doorbell and waits again: its ticket is no longer away. Or it
            # was stopped in the first moments of its body: without a guard it learns of its loss on waking.
            until_blocking(partial(_lost_or_waiting, winner, round, server, pool))
            if winner.find("lost", round):
                _leave(next_one, round)
                continue
            passed_over += 1
            assert not winner.find("use", round)
            _leave(next_one, round)
            winner.wait_for("use", round)
            _leave(winner, round)
        else:
            winner.wait_for("use", round)
            _leave(winner, round)
            next_one.wait_for("use", round)
            _leave(next_one, round)
    assert passed_over, "the winner was always in before it could be disturbed"


def _lost_or_waiting(winner: Started, round: str, server: Server, pool: str) -> bool:
    return winner.find("lost", round) is not None or [t.state for t in snapshot(server, pool).queue] == ["waiting"]


def _wait_for_either(crew: Crew, round: str) -> None:
    """Until the winner or the next one is in the body. What the winner has begun before it was stopped is its own."""
    winner, next_one = crew.workers["winner"], crew.workers["next"]
    until_blocking(lambda: winner.find("enter", round) or next_one.find("use", round))


def test_a_winner_whose_session_ended_meanwhile_starts_over(crew: Crew, server: Server, pool: str) -> None:
    """Stopped for longer than its session: it wakes with a doorbell, and a session, that are both long gone."""
    holder, winner, next_one = crew.workers.values()
    _queue_up(server, pool, crew, "0")
    holder.tell("leave", "0")
    winner.stop()
    _wait_for_either(crew, "0")
    if winner.find("use", "0"):
        pytest.skip("the winner was in before it could be stopped")
    until_blocking(lambda: snapshot(server, pool).sessions == 2)
    winner.resume()
    queued(server, pool, 1)
    assert not winner.find("use", "0")
    _leave(next_one, "0")
    winner.wait_for("use", "0")
    _leave(winner, "0")


def test_a_grant_that_is_read_after_its_session_ended_lets_nobody_in(crew: Crew, server: Server, pool: str) -> None:
    """The asker stops right after it has sent its request; the server grants it, and later to another."""
    _, asker, next_one = crew.workers.values()
    asker.ask("before")
    asker.wait_for("use", "before")
    _leave(asker, "before")
    for round in map(str, range(ROUNDS // 10)):
        server.pause()
        asker.ask(round)
        asker.stop()
        server.resume()
        until_blocking(lambda: [lease.state for lease in snapshot(server, pool).leases] == ["held"])
        granted = snapshot(server, pool).leases[0]
        next_one.ask(round)
        next_one.wait_for("use", round)
        asker.resume()
        queued(server, pool, 1)
        assert not asker.find("use", round)
        _leave(next_one, round)
        asker.wait_for("use", round)
        entered = asker.wait_for("enter", round)
        assert entered.token > granted.token
        assert entered.lease != granted.id
        _leave(asker, round)
