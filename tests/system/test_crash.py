"""Processes that are killed, stopped, blocked or forked, on a host without a guard."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from gpulockd.settings import SessionBlock
from tests.pools import GIB, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until_blocking
from tests.system.history import hand_offs_s, overlaps, token_breaks, troubles
from tests.system.witness import CARD_GIB
from tests.system.workers_started import SOAK, Crew, Started, keepalives_heard, passed, queued

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["valkey"], indirect=True)]

TIMES = SessionBlock(ttl=7.0, keepalive=0.4, rpc_deadline=0.4, margin=0.2, claim_window=5.0)
"""A program that the machine stops for seconds loses nothing; who is passed over only after that was waited for."""

FORKING = SessionBlock(claim_window=15.0)
"""Under these a doorbell that does not ring costs seconds each time."""

SLACK_S, BUSY_S, TRIES = 1.5, 20.0, 5
"""What a machine may add (in seconds), once or each time; and how often it is tried until it did not."""

ROUNDS = 20 if SOAK else 2


@pytest.fixture
def crew(server: Server, pool: str, tmp_path: Path) -> Iterator[Crew]:
    """Workers to be started before one gpu."""
    with _offered(server, pool, tmp_path, TIMES) as crew:
        yield crew


@contextmanager
def _offered(server: Server, pool: str, folder: Path, session: SessionBlock) -> Iterator[Crew]:
    offer(server, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=session)
    with Crew(folder, server.url, pool, session) as crew:
        yield crew


def _hold(worker: Started, key: str = "0", **wish: object) -> None:
    worker.ask(key, **wish)
    worker.wait_for("use", key)


def _queue_up(server: Server, pool: str, *waiters: Started, key: str = "0", first_place: int = 1) -> None:
    for place, waiter in enumerate(waiters, first_place):
        waiter.ask(key)
        queued(server, pool, place)


def _leave(worker: Started, key: str = "0") -> None:
    worker.tell("leave", key)
    worker.wait_for("left", key)


def test_a_killed_holder_is_followed_within_the_session_and_a_step(crew: Crew, server: Server, pool: str) -> None:
    """Invariant 7, without a guard; and not before, for nobody can know that it is dead."""
    (heir,) = crew.obedient("heir")
    soonest_s = float("inf")
    for round in map(str, range(max(ROUNDS, TRIES))):
        if int(round) >= ROUNDS // 2 and soonest_s <= TIMES.ttl + TIMES.step_s + SLACK_S:
            break
        (holder,) = crew.obedient(f"holder{round}")
        _hold(holder)
        _queue_up(server, pool, heir, key=round)
        died_at = holder.kill()
        took_s = heir.wait_for("use", round).at_s - died_at
        assert took_s <= TIMES.ttl + TIMES.step_s + BUSY_S
        assert took_s >= TIMES.ttl / 4
        soonest_s = min(soonest_s, took_s)
        _leave(heir, round)
    assert soonest_s <= TIMES.ttl + TIMES.step_s + SLACK_S
    assert not troubles(crew.notes())
    assert not token_breaks(crew.notes())


def test_a_killed_waiter_is_passed_over_at_once(crew: Crew, server: Server, pool: str) -> None:
    """Its subscription went with it, so the hand-off sees that nobody listens."""
    holder, heir = crew.obedient("holder", "heir")
    for round in map(str, range(ROUNDS)):
        (waiter,) = crew.obedient(f"waiter{round}")
        _hold(holder, round)
        _queue_up(server, pool, waiter, heir, key=round)
        until_blocking(lambda: _subscriptions(server) == 3)  # one that subscribes again is away for a moment
        waiter.kill()
        _wait_for_fewer_subscriptions(server, 3)
        holder.tell("leave", round)
        heir.wait_for("use", round)
        _leave(heir, round)
    assert not troubles(crew.notes())
    assert not token_breaks(crew.notes())
    assert snapshot(server, pool).counters.get("claim_lapsed", 0) == 0


def _wait_for_fewer_subscriptions(server: Server, than: int) -> None:
    until_blocking(lambda: _subscriptions(server) < than)


def _subscriptions(server: Server) -> int:
    with redis.Redis.from_url(server.url) as store:
        return len(store.pubsub_channels("gpulockd:*:session:*"))


def test_a_body_that_blocks_its_loop_keeps_its_lease(crew: Crew, server: Server, pool: str) -> None:
    """GPU code blocks event loops; the keepalive thread does not care."""
    holder, heir = crew.obedient("holder", "heir")
    blocks_s = 1.5 * TIMES.ttl
    holder.tell("ask", "0", blocks_s=blocks_s)
    holder.wait_for("use", "0")
    _queue_up(server, pool, heir)
    holder.tell("leave", "0")
    left = holder.wait_for("left", "0")
    assert left.at_s - holder.wait_for("use", "0").at_s >= blocks_s
    assert heir.wait_for("use", "0").at_s > holder.wait_for("used", "0").at_s
    _leave(heir)
    assert not troubles(crew.notes())


@pytest.mark.parametrize("keepalive_under_way", [False, True])
def test_a_stopped_holder_learns_of_its_loss_when_it_wakes(
    crew: Crew, server: Server, pool: str, keepalive_under_way: bool
) -> None:
    """It must not go on beside its heir, also if the answer to an old keepalive is the first thing it reads."""
    holder, heir = crew.obedient("holder", "heir")
    _hold(holder, witnessed=False)
    until_blocking(lambda: keepalives_heard(server) == 1)
    _queue_up(server, pool, heir)
    if keepalive_under_way:
        # The holder's first keepalive has just been answered. Its second lies in the server's socket half a deadline
        # after it was due; the answer is written while the holder is stopped.
        server.pause()
        passed(TIMES.keepalive + TIMES.rpc_deadline / 2)
        holder.stop()
        server.resume()
    else:
        holder.stop()
    heir.wait_for("use", "0")
    assert not holder.find("lost")
    server.pause()  # nobody can tell it any more: it must know by itself
    holder.resume()
    holder.wait_for("lost", "0")
    server.resume()
    _leave(heir)
    assert not overlaps(crew.notes())
    # It is not out for ever: the next time it asks, it is a new session.
    _hold(holder, "again")
    _leave(holder, "again")


def test_forked_children_lock_as_others_do(server: Server, pool: str, tmp_path: Path) -> None:
    """Celery forks from a parent that has used the library: children have sessions and sockets of their own."""
    with _offered(server, pool, tmp_path, FORKING) as crew:
        (parent,) = crew.start("fork", "parent", how="has_held", rounds=ROUNDS * 30, hold_s=[0.0, 0.005])
        (other,) = crew.start("loop", "other", rounds=ROUNDS * 30, hold_s=[0.0, 0.005])
        for worker in (parent, other):
            worker.finish(90)
            assert not worker.printed()
        notes = crew.notes()
    assert not troubles(notes)
    assert len([note for note in notes if note.what == "done"]) == len(["parent", "its", "three", "children", "other"])
    hand_offs = hand_offs_s(notes)
    assert len(hand_offs) > ROUNDS * 12
    assert statistics.median(hand_offs) < 1.0
    assert snapshot(server, pool).counters.get("claim_lapsed", 0) == 0


def test_a_forked_child_shares_the_parents_lease_and_cannot_end_it(crew: Crew, server: Server, pool: str) -> None:
    """A child that leaves the parent's block, or a block of its own inside of it, leaves the parent's lock alone."""
    arguments = {"how": "holds", "rounds": 2, "hold_s": [0.0, 0.005], "witnessed": False}
    (parent,) = crew.start("fork", "parent", **arguments)
    (heir,) = crew.obedient("heir")
    parent.wait_for("enter", "parent")
    heir.ask("0")
    still = parent.wait_for("still", "parent")
    assert still.text == "0 True"
    assert [(lease.token, lease.state) for lease in snapshot(server, pool).leases] == [(still.token, "held")]
    assert not heir.find("use")
    entered = [note for note in crew.notes() if note.what == "enter" and note.who.startswith("parent.")]
    assert len(entered) == 6
    assert {note.token for note in entered} == {still.token}
    parent.tell("go on")
    heir.wait_for("use", "0")
    _leave(heir)
    parent.finish()
    assert not parent.printed()
    assert not troubles(crew.notes())


def test_the_death_of_a_parent_is_seen_though_its_child_lives(crew: Crew, server: Server, pool: str) -> None:
    """A socket that the child had inherited and kept would still listen for the dead parent."""
    holder, between, heir = crew.obedient("holder", "between", "heir")
    _hold(holder)
    (parent,) = crew.start("fork", "parent", how="waits", hold_s=[0.0, 0.0])
    queued(server, pool, 1)
    _queue_up(server, pool, between, first_place=2)  # so that the parent has to wait once more
    _leave(holder)
    parent.wait_for("used", "before")
    between.wait_for("use", "0")
    parent.wait_for("forked")
    queued(server, pool, 1)
    _queue_up(server, pool, heir, first_place=2)
    listening = max(_subscriptions(server) for _ in range(200))  # one that subscribes again is away for a moment
    parent.kill()
    _wait_for_fewer_subscriptions(server, listening)
    between.tell("leave", "0")
    heir.wait_for("use", "0")
    _leave(heir)
    assert not troubles(crew.notes())
    assert snapshot(server, pool).counters.get("claim_lapsed", 0) == 0
