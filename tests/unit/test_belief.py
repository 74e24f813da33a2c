"""How long a process may believe what it holds: no longer than the ledger lets it stand, whatever else is answered."""

from __future__ import annotations

import asyncio

from gpulockd.client.session import Session
from gpulockd.client.table import SESSIONS_OUTLASTED, Ask, Entry
from gpulockd.ledger import answers as a
from gpulockd.ledger.verbs import Terms
from gpulockd.model import Job, PoolClock, Wants
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock

CLOCK = PoolClock(epoch="e", ttl_ms=20_000, step_ms=3_000, keepalive_ms=5_000)
TTL_S = CLOCK.ttl_ms / 1000


LOWERED = PoolClock(epoch="e", ttl_ms=6_000, step_ms=2_000, keepalive_ms=1_000)


def session() -> Session:
    """One that nobody has answered yet."""
    times = SessionBlock()
    return Session("unix:///nowhere", "here", times, Terms.of(times, QueueBlock(), SettleBlock()))


def alive() -> a.Alive:
    """The answer to a keepalive."""
    return a.Alive(clock=CLOCK, now_ms=0, listeners=1, has=(), lost=())


def ended() -> a.Ended:
    """The answer to a release, which renews no other lease."""
    return a.Ended(clock=CLOCK, now_ms=0, reason="released")


def test_answers_to_other_requests_prove_a_lease_only_for_a_while() -> None:
    """Keepalives alone renew leases: where they hang and others do not, a lease ends by itself."""
    it = session()
    it.heard(100.0, alive())
    begun = it.believed_until()
    for at_s in range(105, 400, 5):
        it.heard(float(at_s), ended())
    assert begun + TTL_S == it.believed_until()
    lease_ends_s = 100.0 + SESSIONS_OUTLASTED * TTL_S - CLOCK.step_ms / 1000
    assert it.believed_until() < lease_ends_s
    it.heard(400.0, alive())
    assert it.believed_until() == begun + 300.0


def test_a_new_incarnation_is_believed_from_its_first_answer() -> None:
    """What the one before it heard of keepalives is nothing to it."""
    it = session()
    it.heard(100.0, alive())
    it.begin_anew(it.id, "died")
    it.heard(900.0, ended())
    assert it.believed_until() > 900.0


def test_a_lease_that_its_process_keeps_alive_outlasts_its_session() -> None:
    """An own end of a second would come between two keepalives; what reports by itself ends when it said."""
    automatic = Ask(Wants(), 0, Job(task="test"), 1_000)
    assert automatic.outlasting(20_000).lock_timeout_ms == SESSIONS_OUTLASTED * 20_000
    longer = Ask(Wants(), 0, Job(task="test"), 3_600_000)
    assert longer.outlasting(20_000).lock_timeout_ms == 3_600_000
    manual = Ask(Wants(), 0, Job(task="test", heartbeat="manual"), 1_000)
    assert manual.outlasting(20_000).lock_timeout_ms == 1_000


def test_after_the_ttl_was_lowered_a_lease_still_outlasts_what_was_believed_before() -> None:
    """A keepalive of before is believed for two of the old ttl; an own end by the new one would come sooner."""
    it = session()
    it.heard(100.0, alive())
    it.heard(101.0, a.Ended(clock=LOWERED, now_ms=0, reason="released"))
    ask = Ask(Wants(), 0, Job(task="test"), 1_000).outlasting(it.ttl_ms)
    for at_s in range(102, 200):
        it.heard(float(at_s), a.Ended(clock=LOWERED, now_ms=0, reason="released"))
    assert it.believed_until() < 101.0 + ask.lock_timeout_ms / 1000


async def test_who_waits_for_the_lease_it_is_to_join_has_no_place_to_assert() -> None:
    """A store that forgets again would get it a place behind that lease, which waits for it."""
    loop, job = asyncio.get_running_loop(), Job(task="test")
    child = Entry(Ask(Wants(), 0, job, 1_000, inside=("lease", 7)), "session", loop)
    child.wait_at(0, 5_000)
    assert child.brought_ticket() is None
    child.wait_at(3, 6_000)
    assert child.brought_ticket() is not None
    other = Entry(Ask(Wants(), 0, job, 1_000), "session", loop)
    other.wait_at(0, 5_000)
    assert other.brought_ticket() is not None
