"""A run's lease in the wrapper's own session, kept alive without the daemon: its restart is nothing to a run.

The daemon has asked under this session's id; from the first `open` here the session is the wrapper's.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from gpulockd import places
from gpulockd.cli.wish import Grant, Wish
from gpulockd.client import wishes
from gpulockd.client.finding import find_store
from gpulockd.client.keeper import Keeper
from gpulockd.client.session import Session
from gpulockd.client.standing import Standing
from gpulockd.client.table import Ask, Entry
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError, LeaseLost, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from gpulockd.ledger.verbs import Terms
from gpulockd.model import Gpu, Process
from gpulockd.settings import SessionBlock

HIDDEN = ":***@"
RETRY_S = 0.2


class Holding:
    """The session, its one entry, and the keeper."""

    def __init__(self, grant: Grant, wish: Wish) -> None:
        times = wishes.session_block()
        terms = Terms.of(times, wishes.queue_block(), wishes.settle_block())
        process = msgspec.convert(wish.process, Process)
        self._grant = grant
        self._wish = wish
        self.session = Session(_whole(grant.store), grant.pool, times, terms, id=wish.session, process=process)
        self.keeper = Keeper(self.session)
        self.entry = self._entry_of(grant, wish)
        self.session.table.add(self.entry)
        self.standing = Standing(self.session, self.entry)

    def _entry_of(self, grant: Grant, wish: Wish) -> Entry:
        wants = wishes.wants_of(None, wish.gpu_count, wish.gpus, wish.memory, None)
        job = wishes.job_of(wish.task, None, None, None, wish.limit_s, "automatic")
        lock_timeout_s = wishes.gpu_lock_block({}).lock_timeout
        # Nobody waits in a loop for this entry: it holds already.
        loop = asyncio.new_event_loop()
        loop.close()
        ask = Ask(wants, wish.priority, job, round(lock_timeout_s * 1000), wish.inside)
        entry = Entry(ask, wish.session, loop)
        entry.id = wish.ticket
        gpus = tuple(msgspec.convert(gpu, Gpu) for gpu in grant.gpus)
        entry.hold(grant.token, gpus, grant.waited_s)
        entry.granted_at = grant.asked_at
        if grant.is_member:
            entry.state = "member"
            entry.of = wish.inside[0] if wish.inside else ""
        return entry

    def open(self) -> None:
        """Take the session over and begin to keep it.

        :raises LeaseLost: if it has ended
        :raises StoreUnavailable: if the store did not answer while the grant could be believed
        """
        session = self.session
        belief_ends = self._grant.asked_at + session.times.belief_s
        while True:
            asked_at, id = boottime_s(), session.id
            try:
                (answer,) = self._ask(session.open_call(known_pool=True))
            except StoreUnavailable:
                if boottime_s() >= belief_ends:
                    raise
                time.sleep(RETRY_S)
                continue
            break
        if not session.opened(asked_at, answer, id) or self.entry.lost.is_set():
            raise LeaseLost(self._why_lost())
        if session.ledger_ms is not None:
            held_ms = round((asked_at - self.entry.granted_at) * 1000)
            self.entry.stamp_ms = session.ledger_ms - held_ms - round(self._grant.waited_s * 1000)
        lock_timeout_s = wishes.gpu_lock_block(session.defaults, session.id, self._wish.task).lock_timeout
        self.entry.ask.lock_timeout_ms = round(lock_timeout_s * 1000)
        self.entry.ask.outlasting(session.ttl_ms)
        self.keeper.start()
        self.standing.start()
        # A lease that was revoked while nobody kept the session is learnt at the first keepalive: now.
        self.keeper.wake()

    def grace_s(self, usual_s: float) -> float:
        """The grace that the pool's daemon has published (in seconds), `usual_s` if it has said none."""
        settle = self.session.defaults.get("settle")
        said = settle.get("grace") if isinstance(settle, dict) else None
        return float(said) if isinstance(said, int | float) else usual_s

    def release(self) -> str:
        """End the lease and the session; return as `release` does.

        :raises GpuLockError: if the store does not answer; both then end by themselves
        """
        session = self.session
        self.entry.state = "ending"
        self.standing.leave()
        if self.keeper.started:
            session.is_open = False  # its goodbye is said here, with the lease's end in front
            self.keeper.stop()
        return release(self._grant, self._wish, session=session.id, deadline_s=session.times.rpc_deadline)

    def _why_lost(self) -> str:
        """The reason by which the lease ended before it could be kept; `open` only says that it has."""
        session, entry = self.session, self.entry
        call = verbs.keepalive(session.keys, session=entry.session, echo=0, leases=[(entry.id, entry.token)])
        (answer,) = self._ask(call)
        if isinstance(answer, a.Alive):
            return dict(answer.lost).get(entry.id, entry.lost_reason)
        return "its session has ended"

    def _ask(self, *calls: verbs.Call[Any]) -> list[Any]:
        """Send calls on a connection of their own and return their answers."""
        return _ask(self.session.url, self.session.times.rpc_deadline, *calls)


def release(grant: Grant, wish: Wish, *, session: str = "", deadline_s: float = SessionBlock().rpc_deadline) -> str:
    """End a lease and its session; return by what the lease has ended as the ledger says, "released" if by this.

    It needs no `Holding`, so that a grant that cannot be kept is given back too.

    :param session: the id of the session if a new one has begun since the grant
    :raises GpuLockError: if the store does not answer; both then end by themselves
    """
    keys, url = PoolKeys(grant.pool), _whole(grant.store)
    calls: tuple[verbs.Call[Any], ...] = (
        verbs.end(keys, session=wish.session, id=wish.ticket, token=grant.token, reason="released"),
        verbs.end(keys, session="", id=session or wish.session, token=None, reason="released", what="session"),
    )
    try:
        answer = _ask(url, deadline_s, *calls)[0]
    except GpuLockError:  # once more, on a new connection
        answer = _ask(url, deadline_s, *calls)[0]
    if isinstance(answer, a.Ended | a.Gone):
        return answer.reason
    return "another holds it" if isinstance(answer, a.Stale) else "its session has ended"


def _ask(url: str, deadline_s: float, *calls: verbs.Call[Any]) -> list[Any]:
    store = BlockingStore(url, deadline_s=deadline_s)
    try:
        return [store.ask(call) for call in calls]
    finally:
        store.close()


def _whole(url: str) -> str:
    """The store's URL from here. Where the daemon has hidden its password, the environment or its hello has it."""
    if HIDDEN in url:
        return find_store().url
    runtime = places.find_runtime()
    return places.store_seen_from(runtime[0], url) if runtime is not None else url
