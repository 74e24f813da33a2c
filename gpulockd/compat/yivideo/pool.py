"""Looks at the pool for programs that are no part of it: a connection for the time of a question, and no session.

So a page or a health check may ask, in a thread, with a daemon or without one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import msgspec

from gpulockd.client.blocking import portal
from gpulockd.client.finding import find_store
from gpulockd.client.process import DEFAULT_POOL
from gpulockd.client.whoami import boot_id
from gpulockd.client.wishes import session_block
from gpulockd.clock import wall_ms
from gpulockd.errors import ConfigError
from gpulockd.events import Event
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.alerts import alert_read
from gpulockd.ledger.happened import Lately, lately
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.living import living
from gpulockd.ledger.recorded import BOOK, Book, Stored, read_book, recorded
from gpulockd.ledger.store import Store
from gpulockd.ledger.tally import Facts, Tally, recent_with
from gpulockd.model import Snapshot, TicketRecord

T = TypeVar("T")

NAME = "gpulockd-yivideo"
LATELY = 2000
"""How many of the last events are looked at, unless more of them are counted nowhere yet."""


class Alert(msgspec.Struct, frozen=True):
    """An alert of the pool, as its daemon has written it."""

    pool: str
    rule: str
    state: str
    level: Literal["warning", "critical"]
    message: str = ""
    detail: str = ""
    escalated_ms: int | None = None

    @property
    def is_critical(self) -> bool:
        """Whether it is, or has become so since nobody reacted."""
        return self.level == "critical" or self.escalated_ms is not None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A pool at one moment. `snapshot` is None for one that nobody has opened; `alerts` if nobody judges them.

    `total` and `recent` count all that was recorded and all that has happened since, each once. `at_ms` is the server's
    wall clock.
    """

    at_ms: int
    snapshot: Snapshot | None
    total: Tally
    recent: str
    events: tuple[Event, ...]
    alerts: tuple[Alert, ...] | None

    def holders(self, key: str) -> list[TicketRecord]:
        """The leases on a lock, the oldest first."""
        return holders_of(self.snapshot, key)


def ask(question: Callable[[Store, PoolKeys], Awaitable[T]]) -> T:
    """Ask the store about the pool of this process, and wait for the answer.

    :raises StoreUnavailable: if no store is known, or it does not answer
    :raises ConfigError: if it may not be used
    """
    answer: T = portal().call(_asked, question)
    return answer


async def _asked(question: Callable[[Store, PoolKeys], Awaitable[T]]) -> T:
    found = find_store()
    store = Store(found.url, deadline_s=session_block().rpc_deadline, name=NAME)
    try:
        name = found.pool or await store.pool_of_host(boot_id()) or DEFAULT_POOL
        return await question(store, PoolKeys(name))
    finally:
        await store.aclose()


async def pictured(store: Store, keys: PoolKeys) -> Snapshot | None:
    """See the pool; None if nobody has opened it."""
    answer = await store.ask(verbs.snapshot(keys, length=1))
    return answer.snapshot if isinstance(answer, a.Pictured) else None


def holders_of(snapshot: Snapshot | None, key: str) -> list[TicketRecord]:
    """The leases on a lock, the oldest first."""
    leases = snapshot.leases if snapshot is not None else ()
    found = [lease for lease in leases if lease.state in ("held", "claim") and key in lease.gpus]
    return sorted(found, key=lambda lease: lease.token)


def task_id_of(lease: TicketRecord) -> str:
    """Which run of its task a lease is: as named, else `<task>#<token>`."""
    return lease.job.task_id or f"{lease.job.task}#{lease.token}"


async def seen(store: Store, keys: PoolKeys) -> Seen:
    """See the pool, what was counted in it, what has happened lately, and its alerts."""
    snapshot = await pictured(store, keys)
    book = await _book(store, keys)
    found = await _lately(store, keys, book)
    total, recent = Tally(), book.recent
    total.take_in(book.total)
    for event in found.events:
        facts = Facts.of(event)
        if facts.seq > total.through:
            recent = recent_with(recent, facts.outcome)
            total.take(facts)
    alerts = await _alerts(store, keys)
    at_ms = snapshot.at_ms if snapshot is not None else wall_ms()
    return Seen(at_ms=at_ms, snapshot=snapshot, total=total, recent=recent, events=found.events, alerts=alerts)


async def _book(store: Store, keys: PoolKeys) -> Book:
    answer = await store.ask(recorded(keys, parts=(BOOK,)))
    return read_book(answer.hashes[0])[1] if isinstance(answer, Stored) else Book()


async def _lately(store: Store, keys: PoolKeys, book: Book) -> Lately:
    """The last events. Without a daemon nobody counts them, so all that the pool still has are looked at."""
    found = await lately(store.ask, keys, since_ms=0, most=LATELY)
    reaches = not found.events or found.events[0].seq <= book.total.through + 1
    return found if reaches else await lately(store.ask, keys, since_ms=0)


async def _alerts(store: Store, keys: PoolKeys) -> tuple[Alert, ...] | None:
    """The active alerts of the pool, the worst first; None if no daemon judges them, or they may not be read."""
    if not (await living(store, keys)).daemon:
        return None
    try:
        stored = await store.ask(alert_read())
    except ConfigError:
        return None
    found = []
    for kept in stored.alerts.values():
        try:
            alert = msgspec.json.decode(kept.json, type=Alert)
        except msgspec.MsgspecError:  # of another version
            continue
        if alert.pool == keys.pool and alert.state == "active":
            found.append(alert)
    return tuple(sorted(found, key=lambda alert: (not alert.is_critical, alert.rule)))
