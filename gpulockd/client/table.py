"""What a process has asked for and holds: one entry a ticket, from before its request until after its end.

An id in the table is *known*; whatever the ledger has for this session that is not known is given back. State changes
are synchronous; what must be sent because of them is sent by others.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Literal, Protocol

from gpulockd.client.flags import Flag
from gpulockd.clock import boottime_s
from gpulockd.ledger.verbs import BroughtLease, BroughtTicket, encode
from gpulockd.model import Gpu, Job, Wants


class Vouches(Protocol):
    """The guard of this host, as an entry sees it."""

    def vouches(self, entry: Entry) -> bool:
        """Whether it has let this lease in and stands; from any thread."""


SESSIONS_OUTLASTED = 3
"""A lease lasts for so many `session.ttl` after its last keepalive: belief ends after less than two."""


class Ask:
    """What a request says, the same at every try."""

    __slots__ = ("inside", "job", "lock_timeout_ms", "parked", "priority", "wants")

    def __init__(
        self,
        wants: Wants,
        priority: int,
        job: Job,
        lock_timeout_ms: int,
        inside: tuple[str, int] | None = None,
        parked: str = "",
    ) -> None:
        """:param parked: the ticket whose place is taken over"""
        self.parked = parked
        self.wants = wants
        self.priority = priority
        self.job = job
        self.lock_timeout_ms = lock_timeout_ms
        self.inside = inside

    def outside(self) -> Ask:
        """The same for a place of its own, outside of any other lease."""
        return Ask(self.wants, self.priority, self.job, self.lock_timeout_ms)

    def outlasting(self, ttl_ms: int) -> Ask:
        """This, with an own end of the lease that comes after the end of a session that is silent for `ttl_ms`.

        It is for what must report by itself. What its process keeps alive ends with the process's session; an own end
        that is sooner could come while answers to other requests still prove the session.
        """
        if self.job.heartbeat != "manual":
            self.lock_timeout_ms = max(self.lock_timeout_ms, SESSIONS_OUTLASTED * ttl_ms)
        return self


class Entry:
    """One ticket of this process, later its lease. `signal` is the waiting loop's future, made before each request."""

    __slots__ = (
        "ask",
        "claim",
        "gpus",
        "granted_at",
        "guard",
        "id",
        "loop",
        "lost",
        "lost_reason",
        "of",
        "on_lost",
        "rung_to_stop",
        "session",
        "signal",
        "stamp_ms",
        "state",
        "stopping",
        "token",
        "waited_s",
        "watch",
    )

    def __init__(self, ask: Ask, session: str, loop: asyncio.AbstractEventLoop, id: str | None = None) -> None:
        """:param id: the ticket's id, where another process has chosen it"""
        self.id = id or os.urandom(16).hex()
        self.ask = ask
        self.session = session
        self.loop = loop
        self.state: Literal["asking", "held", "member", "ending"] = "asking"
        self.signal: asyncio.Future[None] | None = None
        self.claim: int | None = None
        self.stamp_ms: int | None = None
        self.token = 0
        self.gpus: tuple[Gpu, ...] = ()
        self.granted_at = 0.0
        self.waited_s = 0.0
        self.lost = Flag()
        self.stopping = Flag()
        self.rung_to_stop = False
        self.lost_reason = ""
        self.of = ""
        self.guard: Vouches | None = None
        self.on_lost: Callable[[], None] | None = None
        self.watch: weakref.ref[Any] | None = None

    def __repr__(self) -> str:
        return f"<Entry {self.id[:8]} {self.state} token={self.token}>"

    @property
    def vouched(self) -> bool:
        """Whether the guard of this host stands for this lease, so that Redis may be away for any time."""
        return self.guard is not None and self.guard.vouches(self)

    def kick(self) -> None:
        """Wake the loop that waits for this ticket; call it in that loop."""
        if self.signal is not None and not self.signal.done():
            self.signal.set_result(None)

    def kick_from_thread(self) -> None:
        """Wake the loop that waits for this ticket, from another thread."""
        try:
            self.loop.call_soon_threadsafe(self.kick)
        except RuntimeError:  # the loop is closed; the keeper ends its tickets
            return

    def ring(self, token: int) -> None:
        """The doorbell: this ticket has been granted as a claim with `token`."""
        if self.state == "asking":
            self.claim = token
            self.kick()

    def hold(self, token: int, gpus: tuple[Gpu, ...], waited_s: float) -> None:
        """The lease has begun."""
        self.state = "held"
        self.token = token
        self.gpus = gpus
        self.waited_s = waited_s
        self.granted_at = boottime_s()

    def wait_at(self, place: int, now_ms: int) -> None:
        """It waits since then (ms of the ledger clock), at its place or, for the lease that it is to join, at none (0).

        Who has no place has none to assert: behind that lease it would wait for ever.
        """
        if self.stamp_ms is None and (place or self.ask.inside is None):
            self.stamp_ms = now_ms

    def lose(self, reason: str) -> None:
        """The lease has ended without its holder; from any thread, once."""
        if self.lost.is_set() or self.state not in ("held", "member"):
            return
        self.lost_reason = reason
        self.lost.set()
        if self.on_lost is not None:
            try:
                self.loop.call_soon_threadsafe(self.on_lost)
            except RuntimeError:  # the loop is closed, its body is over
                return

    def brought_ticket(self) -> BroughtTicket | None:
        """This ticket as it is asserted again, if it had a place."""
        if self.state != "asking" or self.stamp_ms is None:
            return None
        return BroughtTicket(stamp=self.stamp_ms, **self._words())

    def brought_lease(self) -> BroughtLease:
        """This lease as it is asserted again."""
        age_ms = round((boottime_s() - self.granted_at) * 1000)
        return self.assertion(self.token, tuple(gpu.key for gpu in self.gpus), age_ms)

    def assertion(self, token: int, gpus: tuple[str, ...], age_ms: int = 0) -> BroughtLease:
        """What the ledger must be told of this lease if it has lost it."""
        return BroughtLease(stamp=self.stamp_ms or 0, token=token, gpus=gpus, age_ms=age_ms, **self._words())

    def _words(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "wants": self.ask.wants.text,
            "priority": self.ask.priority,
            "job": encode(self.ask.job).decode(),
            "task": self.ask.job.task,
            "task_id": self.ask.job.task_id,
            "lock_timeout_ms": self.ask.lock_timeout_ms,
        }


class Table:
    """All entries of one process in one pool."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self.longest_ttl_ms = 0
        """The longest `session.ttl` that the pool has said: who believes by it has no lease that ends sooner."""

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Make it known, before its request is sent."""
        with self._mutex:
            self._entries[entry.id] = entry

    def remove(self, entry: Entry) -> None:
        """Forget it, after its end was answered."""
        with self._mutex:
            self._entries.pop(entry.id, None)

    def get(self, id: str) -> Entry | None:
        """The entry of that id, if it is known."""
        return self._entries.get(id)

    def all(self) -> list[Entry]:
        """All entries at this moment."""
        with self._mutex:
            return list(self._entries.values())

    def held(self) -> list[Entry]:
        """Those that hold, by themselves or as a member, and have not been told that they lost it."""
        return [entry for entry in self.all() if entry.state in ("held", "member") and not entry.lost.is_set()]
