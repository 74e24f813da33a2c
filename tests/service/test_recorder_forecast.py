"""The forecast's play and the ledger: who is expected next is who is served next."""

from __future__ import annotations

import heapq
import random
import secrets
from typing import Any

import pytest
import redis

from gpulockd.client.whoami import this_process
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.forecast import expected_starts
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from gpulockd.model import Job, Wants
from gpulockd.settings import QueueBlock, SessionBlock, SettleBlock
from tests.pools import offer, simulated, snapshot
from tests.servers import Server

CHOICES = (
    Wants(),
    Wants(),
    Wants(count=2),
    Wants(keys=("gpu_lock:1",)),
    Wants(memory_mib=8192, exclusive=False),
    Wants(memory_mib=16_384, exclusive=False),
)

CALM = SessionBlock(ttl=60.0, keepalive=15.0, rpc_deadline=5.0, margin=1.0, claim_window=30.0)
YOUNG = QueueBlock(hold_back_after=100_000.0)
"""Nobody keeps a gpu for itself: the play counts time as it goes on, the ledger as it is."""


class Program:
    """A program with many tickets; all of its doorbells ring, and time is what the test says it is."""

    def __init__(self, server: Server, pool: str) -> None:
        self.keys, self.session = PoolKeys(pool), secrets.token_hex(8)
        self.store = BlockingStore(server.url, deadline_s=5)
        self.raw = redis.Redis.from_url(server.url)
        self.bell = self.raw.pubsub()
        self.bell.subscribe(self.keys.session_channel(self.session))
        assert self.bell.get_message(timeout=10) is not None
        terms = verbs.Terms.of(CALM, YOUNG, SettleBlock())
        self.store.ask(
            verbs.open(self.keys, session=self.session, process=this_process(), terms=terms, known_pool=False)
        )

    def request(self, id: str, wants: Wants, task: str) -> Any:
        """Ask for gpus, to wait for them."""
        return self.store.ask(
            verbs.request(
                self.keys,
                session=self.session,
                id=id,
                wants=wants,
                priority=0,
                wait=True,
                job=Job(task=task),
                lock_timeout_ms=600_000,
                asked_ms=None,
            )
        )

    def release(self, id: str) -> None:
        """Give a lease back."""
        self.store.ask(verbs.end(self.keys, session=self.session, id=id, token=None, reason="released"))

    def begun(self, server: Server) -> list[str]:
        """Confirm the claims there are and return their ids."""
        claims = [lease for lease in snapshot(server, self.keys.pool).leases if lease.state == "claim"]
        for lease in claims:
            answer = self.store.ask(verbs.confirm(self.keys, session=self.session, id=lease.id, token=lease.token))
            assert isinstance(answer, a.Granted), answer
        return [lease.id for lease in claims]

    def close(self) -> None:
        """Leave, with all that is held."""
        self.store.ask(verbs.end(self.keys, session="", id=self.session, token=None, reason="released", what="session"))
        self.bell.close()
        self.raw.close()
        self.store.close()


@pytest.mark.parametrize("seed", range(6))
def test_places_begin_when_the_forecast_says_if_tasks_take_what_they_took(server: Server, pool: str, seed: int) -> None:
    """A forecast by other rules than the ledger's would promise places that others get."""
    dice = random.Random(seed)
    offer(server, pool, simulated(3), session=CALM, queue=YOUNG)
    program = Program(server, pool)
    try:
        # Each ticket has a task of its own, which always takes the same, a time that no other takes.
        holds_ms = {f"{n:02d}": [dice.randrange(10**6, 10**7)] * 5 for n in range(14)}
        for id in holds_ms:
            program.request(id, dice.choice(CHOICES), task=id)
        now = snapshot(server, pool)
        assert now.queued >= 3
        expected = expected_starts(now, holds_ms, hold_back_s=1e12)

        ends = [(holds_ms[lease.id][0] - lease.held_ms, lease.id) for lease in now.leases]
        heapq.heapify(ends)
        begun_ms: dict[str, int] = {}
        while ends:
            at_ms, id = heapq.heappop(ends)
            program.release(id)
            for winner in program.begun(server):
                begun_ms[winner] = at_ms
                heapq.heappush(ends, (at_ms + holds_ms[winner][0], winner))
        assert begun_ms.keys() == {ticket.id for ticket in now.queue}
        assert {id: found and round(found.middle_s * 1000) for id, found in expected.items()} == begun_ms
    finally:
        program.close()
