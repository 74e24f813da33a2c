"""How long a lease lasts that the daemon keeps: in the ledger and in the daemon's file before it is said.

Its law: who was told that its lease lasts has it so long, whatever becomes of this daemon.
"""

from __future__ import annotations

import anyio

from gpulockd.client.line import Line
from gpulockd.client.table import Entry
from gpulockd.clock import boottime_s
from gpulockd.web.timed import Timed, TimedFile


class Term:
    """How long one lease lasts. Who renews it and its end can meet at the same moment: one of the two is first."""

    def __init__(self, line: Line, file: TimedFile, ttl_s: float | None, uid: int) -> None:
        """:param ttl_s: what was asked for (in seconds); None: as long as its process lives
        :param uid: who asked, -1 over TCP
        """
        self._line = line
        self._file = file
        self._ttl_s = ttl_s
        self._uid = uid
        self._until_s = 0.0
        self._is_over = False
        self._is_noted = False
        self._renewed = anyio.Event()

    def __repr__(self) -> str:
        return "<Term of a process>" if self._ttl_s is None else f"<Term {self.ends_in_s:.1f} s left>"

    @property
    def ends_in_s(self) -> float | None:
        """How long until it is over (in seconds); None if it has no time."""
        return None if self._ttl_s is None else max(0.0, self._until_s - boottime_s())

    async def over(self) -> None:
        """Wait until its time is over."""
        while remaining_s := self.ends_in_s:
            with anyio.move_on_after(remaining_s):
                await self._renewed.wait()
        self._is_over = True

    async def renew(self, entry: Entry, ttl_s: float | None) -> bool:
        """Let it go on for so long from now (in seconds), None: for as long as it was asked for.

        False: it has just ended.

        :raises StoreUnavailable: if the ledger or the daemon's own folder does not take it
        """
        until_s = 0.0
        if self._ttl_s is not None:
            until_s = boottime_s() + (ttl_s or self._ttl_s)
            self._last(until_s)
            await self._line.open_session()
        if self._is_over or entry.lost.is_set():
            return False
        # No await from here on: what is written down is what will be.
        self._file.note(self._told(entry, until_s))
        self._is_noted = True
        self._until_s = until_s
        self._renewed.set()
        self._renewed = anyio.Event()
        return True

    def end(self, entry: Entry) -> None:
        """The lease has ended: nobody need know of it any more."""
        self._is_over = True
        if self._is_noted:  # else it may be another's of the same name
            self._file.forget(entry.id)

    def go_on(self, told: Timed) -> None:
        """Take over what the daemon before has written; its session must be opened after this."""
        self._until_s, self._is_noted = told.until_s, True
        self._line.session.id = told.session
        if told.ttl_s is not None:
            self._last(told.until_s)

    def _last(self, until_s: float) -> None:
        """The session lasts until then, and a while: the daemon ends it first, as what it is."""
        session = self._line.session
        session.lasts_until_s = until_s + session.terms.ttl_ms / 1000

    def _told(self, entry: Entry, until_s: float) -> Timed:
        return Timed(
            id=entry.id,
            token=entry.token,
            session=entry.session,
            of=entry.of,
            gpus=entry.gpus,
            wants=entry.ask.wants.text,
            priority=entry.ask.priority,
            job=entry.ask.job,
            lock_timeout_ms=entry.ask.lock_timeout_ms,
            process=self._line.session.process,
            uid=self._uid,
            ttl_s=self._ttl_s,
            until_s=until_s,
            granted_at=entry.granted_at,
            stamp_ms=entry.stamp_ms,
        )


def entered(told: Timed, entry: Entry) -> None:
    """The entry holds what was written down."""
    entry.hold(told.token, told.gpus, 0.0)
    entry.granted_at, entry.stamp_ms = told.granted_at, told.stamp_ms
    if told.of:
        entry.state, entry.of = "member", told.of
