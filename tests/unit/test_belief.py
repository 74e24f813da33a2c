"""How long a process may believe what it holds: no longer than the ledger lets it stand, whatever else is answered."""

from __future__ import annotations

from gpulockd.client.session import Session
from gpulockd.client.table import SESSIONS_OUTLASTED, Ask
from gpulockd.ledger import answers as a
from gpulockd.ledger.verbs import Terms
from gpulockd.model import Job, PoolClock, Wants
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock

CLOCK = PoolClock(epoch="e", ttl_ms=20_000, step_ms=3_000, keepalive_ms=5_000)
TTL_S = CLOCK.ttl_ms / 1000


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
