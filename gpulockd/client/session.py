"""A session: this process being alive in one pool. It is owned by no loop; one keepalive serves all its locks.

What it must send is built here as calls and sent by others: by the loops (`line.py`) for what they wait for, by the
keepalive thread (`keeper.py`) for the rest.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import msgspec

from gpulockd.client.table import Entry, Table
from gpulockd.client.whoami import machine, this_process
from gpulockd.clock import boottime_s
from gpulockd.errors import ConfigError
from gpulockd.ledger import answers as a
from gpulockd.ledger import publishing, verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.verbs import Brought, Call, EndReason, Terms
from gpulockd.model import PoolClock, Process
from gpulockd.settings import SessionBlock

log = logging.getLogger("gpulockd")

MOST_BEFORE = 8

OpenAnswer = a.Opened | a.Gone | a.Elsewhere | a.AskFleet


class Session:
    """One incarnation of this process in one pool, its table of tickets and leases, and what it may believe."""

    def __init__(
        self,
        url: str,
        pool: str,
        times: SessionBlock,
        terms: Terms,
        *,
        socket: str | None = None,
        process: Process | None = None,
        id: str | None = None,
    ) -> None:
        """:param times: this process's own deadlines (in seconds); `terms` open the pool if nobody has"""
        self.url = url
        self.keys = PoolKeys(pool)
        self.times = times
        self.terms = terms
        self.socket = socket
        self.process = process or this_process()
        self.pid = os.getpid()
        self.id = id or uuid4().hex
        self.table = Table()
        self.clock: PoolClock | None = None
        self.ledger_ms: int | None = None
        self.defaults: dict[str, Any] = {}
        self.version = 0
        self.is_open = False
        self.before: list[str] = []
        """The latest incarnations that have ended."""
        self.highest_token = 0
        self.lasts_until_s = 0.0
        """Until when it lasts though nobody keeps it alive (seconds on CLOCK_BOOTTIME), for who holds for a time."""
        self.said_own = False
        self.on_guarded: list[Callable[[], None]] = []
        self._asserted_epoch, self._believed_until, self._kept_until = "", 0.0, 0.0
        self._mutex = threading.Lock()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "not open"
        return f"<Session {self.id[:8]} {self.keys.pool} {state}, {len(self.table)} tickets>"

    @property
    def pool(self) -> str:
        """The pool's name."""
        return self.keys.pool

    # Belief: until when this process may think that its session stands, counted on CLOCK_BOOTTIME from *before* the
    # request that was answered.

    def heard(self, asked_at: float, answer: a.Answer) -> None:
        """An answer to a request sent at `asked_at` (seconds on CLOCK_BOOTTIME) has extended the session."""
        clock = answer.clock
        with self._mutex:
            newly_guarded = clock.guarded and not self.guarded
            self.clock = clock
            self.table.longest_ttl_ms = max(self.table.longest_ttl_ms, clock.ttl_ms)
            self.ledger_ms = answer.now_ms
            until = asked_at + (clock.ttl_ms - clock.step_ms) / 1000 - self.times.margin
            # Only a keepalive renews the leases themselves: where none comes through, other answers prove no more.
            if isinstance(answer, a.Alive) or not self._kept_until:
                self._kept_until = until + clock.ttl_ms / 1000
            self._believed_until = max(self._believed_until, min(until, self._kept_until))
        if newly_guarded:
            for look in list(self.on_guarded):
                look()

    @property
    def guard_silence_s(self) -> float:
        """How long a guard may be silent and still be trusted (in seconds).

        A guard that was stopped right after its last word loses its session, and with it the pool its guard, no sooner.
        """
        if (clock := self.clock) is None:
            return 0.0
        return (clock.ttl_ms - clock.step_ms - clock.keepalive_ms) / 1000 - self.times.margin

    @property
    def guarded(self) -> bool:
        """Whether the pool's guard stood at the last answer: who begins must be let in by it."""
        return self.clock is not None and self.clock.guarded

    @property
    def ttl_ms(self) -> int:
        """How long the pool lets a session live without a sign of life (in ms), at the longest that it has said."""
        return self.table.longest_ttl_ms if self.clock is not None else round(self.times.ttl * 1000)

    @property
    def is_kept(self) -> bool:
        """Whether a keepalive has come through lately; if none has, no other answer proves a lease."""
        return boottime_s() <= self._kept_until

    def believed_until(self) -> float:
        """The end of belief (seconds on CLOCK_BOOTTIME)."""
        return self._believed_until

    def believes(self, asked_at: float) -> bool:
        """Whether an answer to a request sent at `asked_at` still proves the lease it gave."""
        if (clock := self.clock) is None:
            return False
        return boottime_s() <= asked_at + (clock.ttl_ms - clock.step_ms) / 1000 - self.times.margin

    @property
    def keepalive_s(self) -> float:
        """How often the session says that it lives (in seconds): the pool's interval."""
        return self.clock.keepalive_ms / 1000 if self.clock else self.times.keepalive

    # Opening, and opening again.

    def open_call(self, known_pool: bool | None = None) -> Call[OpenAnswer]:
        """The call that opens this session, with all that it has from before."""
        brought = Brought()
        for entry in self.table.all():
            if entry.state == "held" and not entry.lost.is_set():
                brought.leases.append(entry.brought_lease())
            else:
                ticket = entry.brought_ticket()
                if ticket is not None:
                    brought.tickets.append(ticket)
        if brought.leases or brought.tickets:
            known_pool = True
        return verbs.open(
            self.keys,
            session=self.id,
            process=self.process,
            terms=self.terms,
            machine=machine(),
            known_pool=known_pool,
            brought=brought,
            guard_gone_ms=round(self.times.guard_gone_after * 1000) if self.guarded else 0,
            lasts_ms=max(0, round((self.lasts_until_s - boottime_s()) * 1000)),
        )

    def opened(self, asked_at: float, answer: OpenAnswer, asked_id: str) -> bool:
        """Take what `open` answered. False: ask again, with the answer of the fleet's list or as a new incarnation.

        :raises ConfigError: if the pool belongs to another host
        """
        if isinstance(answer, a.AskFleet):
            return False
        if isinstance(answer, a.Elsewhere):
            raise ConfigError(
                f"pool {self.pool!r} belongs to the GPUs of host {answer.host or answer.boot_id!r}, not to this one; "
                "set GPULOCKD_POOL (or pool=) to this host's pool"
            )
        if isinstance(answer, a.Gone):
            self.begin_anew(asked_id, answer.reason)
            return False
        anew = answer.clock.epoch != self._asserted_epoch
        self.take_published(answer.clock.version, answer.defaults, anew=anew)
        self.heard(asked_at, answer)
        self._asserted_epoch = answer.clock.epoch
        self.is_open = True
        for id in answer.refused:
            entry = self.table.get(id)
            if entry is not None:
                entry.lose("lost with the store's data")
        return True

    # What the pool publishes. Requests go by it from the next one on; who waits or holds keeps what it began with.

    def take_published(self, version: int, defaults: dict[str, Any], *, anew: bool = False) -> None:
        """Go by what the pool publishes under this version, if it is later than what is known; from any thread.

        :param anew: the store may have lost the versions that it had before, so they do not count
        """
        with self._mutex:
            if version <= self.version and not anew:
                return
            self.version = version
            # A pool that lost its data says nothing until its daemon has offered it again.
            if version or not self.defaults:
                self.defaults = defaults
        self._take_times(defaults.get("session"))

    def is_behind(self) -> bool:
        """Whether the pool has published something that this process has not got: the message was lost."""
        clock = self.clock
        return clock is not None and clock.version > self.version

    def published_call(self) -> Call[publishing.Published | a.Unopened]:
        """The call that reads what the pool publishes."""
        return publishing.published(self.keys)

    def _take_times(self, published: Any) -> None:
        """The deadlines and the margin that the pool's daemon has published: belief is counted in its terms."""
        if isinstance(published, dict):
            names = ("rpc_deadline", "margin", "guard_gone_after")
            self.times = msgspec.structs.replace(self.times, **{n: published[n] for n in names if n in published})

    def stands(self, entry: Entry) -> bool:
        """Whether `entry` may be entered now: not lost, of this incarnation, and believed."""
        mine = entry.session == self.id and not entry.lost.is_set()
        return mine and boottime_s() <= self._believed_until

    def begin_anew(self, ended_id: str, reason: str) -> None:
        """The incarnation `ended_id` has ended: what it held is lost, and a new one begins."""
        with self._mutex:
            if self.id != ended_id:
                return
            self.before = [*self.before[1 - MOST_BEFORE :], ended_id]
            self.id = uuid4().hex
            self.is_open = False
            self._kept_until = 0.0
        log.warning("gpulockd: session %s in pool %s has ended (%s); a new one begins", ended_id[:8], self.pool, reason)
        for entry in self.table.all():
            if entry.session == ended_id:
                entry.lose(f"session {reason}")
                entry.kick_from_thread()

    def must_assert(self, answer: a.Answer) -> bool:
        """Whether the store has begun a new epoch since this session last said what it has."""
        return answer.clock.epoch != self._asserted_epoch

    # What is sent.

    def keepalive_call(self, echo: int) -> Call[a.Alive | a.NoSession | a.Unopened]:
        """The call that keeps the session and its leases."""
        pairs = [(entry.id, entry.token) for entry in self.table.held() if entry.session == self.id]
        return verbs.keepalive(self.keys, session=self.id, echo=echo, leases=pairs)

    def request_call(self, entry: Entry, *, wait: bool) -> Call[Any]:
        """The call that asks for an entry's gpus; the same id at every try."""
        ask = entry.ask
        return verbs.request(
            self.keys,
            session=entry.session,
            id=entry.id,
            wants=ask.wants,
            priority=ask.priority,
            wait=wait,
            job=ask.job,
            lock_timeout_ms=ask.lock_timeout_ms,
            asked_ms=self.ledger_ms if self.id == entry.session else None,
            inside=ask.inside,
            parked=ask.parked,
        )

    def end_call(self, entry: Entry, reason: EndReason) -> Call[Any]:
        """The call that ends an entry: with its token if it was held, else whatever it has by now."""
        token = entry.token if reason == "released" else None
        return verbs.end(self.keys, session=entry.session, id=entry.id, token=token, reason=reason)

    def take_echo(self, has: list[tuple[str, int, str]]) -> list[str]:
        """Compare what the ledger has for this session with the table: wake loops for all but what they hold.

        Returns the ids that nobody here knows; they must be given back.
        """
        unknown = []
        for id, token, state in has:
            entry = self.table.get(id)
            if entry is None:
                unknown.append(id)
            elif state == "claim":
                self._ring_from_thread(entry, token)
            elif entry.state == "asking":  # away, or granted in an answer that never came
                entry.kick_from_thread()
        return unknown

    def _ring_from_thread(self, entry: Entry, token: int) -> None:
        try:
            entry.loop.call_soon_threadsafe(entry.ring, token)
        except RuntimeError:  # the loop is closed; the keeper ends its tickets
            return
