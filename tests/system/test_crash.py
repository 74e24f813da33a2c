"""Processes that are killed, stopped, blocked or forked, on a host without a guard."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.pools import GIB, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until_blocking
from tests.system.history import hand_offs_s, overlaps, token_breaks, troubles
from tests.system.witness import CARD_GIB
from tests.system.workers_started import BRISK, SOAK, Crew, Started, keepalives_heard, passed, queued

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("server", ["valkey"], indirect=True)]

SLACK_S = 1.5
"""What a busy machine may add (in seconds)."""

AT_ONCE_S = 0.4
"""Less than a claim window, a keepalive or a deadline, so that none of them was waited for (in seconds)."""

ROUNDS = 20 if SOAK else 2


@pytest.fixture
def crew(server: Server, pool: str, tmp_path: Path) -> Iterator[Crew]:
    """Workers to be started before one gpu."""
    offer(server, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=BRISK)
    with Crew(tmp_path, server.url, pool, BRISK) as crew:
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
    for round in map(str, range(ROUNDS)):
        (holder,) = crew.obedient(f"holder{round}")
        _hold(holder)
        _queue_up(server, pool, heir, key=round)
        died_at = holder.kill()
        took_s = heir.wait_for("use", round).at_s - died_at
        assert took_s <= BRISK.ttl + BRISK.step_s + SLACK_S
        assert took_s >= BRISK.ttl - BRISK.step_s - SLACK_S
        _leave(heir, round)
    assert not troubles(crew.notes())
    assert not token_breaks(crew.notes())


def test_a_killed_waiter_is_passed_over_at_once(crew: Crew, server: Server, pool: str) -> None:
    """Its subscription went with it, so the hand-off sees that nobody listens."""
    holder, heir = crew.obedient("holder", "heir")
    for round in map(str, range(ROUNDS)):
        (waiter,) = crew.obedient(f"waiter{round}")
        _hold(holder, round)
        _queue_up(server, pool, waiter, heir, key=round)
        listening = _subscriptions(server)
        waiter.kill()
        _wait_for_fewer_subscriptions(server, listening)
        holder.tell("leave", round)
        entered = heir.wait_for("use", round)
        assert entered.at_s - holder.wait_for("used", round).at_s < AT_ONCE_S
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
    blocks_s = 3 * BRISK.ttl
    holder.tell("ask", "0", blocks_s=blocks_s)
    holder.wait_for("use", "0")
    _queue_up(server, pool, heir)
    holder.tell("leave", "0")
    left = holder.wait_for("left", "0")
    assert left.at_s - holder.wait_for("use", "0").at_s >= blocks_s
    entered = heir.wait_for("use", "0")
    assert entered.at_s - holder.wait_for("used", "0").at_s < AT_ONCE_S
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
        passed(BRISK.keepalive + BRISK.rpc_deadline / 2)
        holder.stop()
        server.resume()
    else:
        holder.stop()
    heir.wait_for("use", "0")
    assert not holder.find("lost")
    woke_at = holder.resume()
    lost = holder.wait_for("lost", "0")
    assert lost.at_s - woke_at < AT_ONCE_S / 2
    _leave(heir)
    assert not overlaps(crew.notes())
    # It is not out for ever: the next time it asks, it is a new session.
    _hold(holder, "again")
    _leave(holder, "again")


def test_forked_children_lock_as_others_do(crew: Crew, server: Server, pool: str) -> None:
    """Celery forks from a parent that has used the library: children have sessions and sockets of their own."""
    (parent,) = crew.start("fork", "parent", how="has_held", rounds=ROUNDS * 12, hold_s=[0.0, 0.005])
    (other,) = crew.start("loop", "other", rounds=ROUNDS * 12, hold_s=[0.0, 0.005])
    for worker in (parent, other):
        worker.finish()
        assert not worker.printed()
    notes = crew.notes()
    assert not troubles(notes)
    assert len([note for note in notes if note.what == "done"]) == len(["parent", "its", "three", "children", "other"])
    hand_offs = hand_offs_s(notes)
    assert len(hand_offs) > ROUNDS * 12
    assert statistics.median(hand_offs) < AT_ONCE_S / 10
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
    told_at = time.monotonic()
    assert heir.wait_for("use", "0").at_s - told_at < AT_ONCE_S
    _leave(heir)
    parent.finish()
    assert not parent.printed()
    assert not troubles(crew.notes())


def test_the_death_of_a_parent_is_seen_though_its_child_lives(crew: Crew, server: Server, pool: str) -> None:
    """A socket that the child had inherited and kept would still listen for the dead parent."""
    holder, heir = crew.obedient("holder", "heir")
    _hold(holder)
    (parent,) = crew.start("fork", "parent", how="waits", hold_s=[0.0, 0.0])
    queued(server, pool, 1)
    _leave(holder)
    parent.wait_for("used", "before")
    _hold(holder, "1")
    parent.wait_for("forked")
    queued(server, pool, 1)
    _queue_up(server, pool, heir, first_place=2)
    listening = _subscriptions(server)
    parent.kill()
    _wait_for_fewer_subscriptions(server, listening)
    holder.tell("leave", "1")
    entered = heir.wait_for("use", "0")
    assert entered.at_s - holder.wait_for("used", "1").at_s < AT_ONCE_S
    _leave(heir)
    assert not troubles(crew.notes())
