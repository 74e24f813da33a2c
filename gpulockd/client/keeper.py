"""The keepalive thread: one small thread a process and pool, with its own socket, because GPU code blocks event loops.

It extends the session, notices what was lost, and repairs what a lost message left behind. It decides nothing else:
what must be done about a ticket it hands to that ticket's loop, and sends itself only for tickets whose loop is closed.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.publishing import Published
from gpulockd.ledger.store import BlockingStore

log = logging.getLogger("gpulockd")

RETRY_S = 0.25
"""How soon a keepalive that failed is tried again (in seconds)."""


class Keeper:
    """Keeps one session alive from its own daemon thread until `stop`."""

    def __init__(self, session: Session, *, gives_back: bool = True) -> None:
        """:param gives_back: whether this process is the session's own, so that what it does not know is nobody's"""
        self.gives_back = gives_back
        self.session = session
        self.sent = 0
        self._wake = threading.Event()
        self._mutex = threading.Lock()
        self._stopping = False
        self._store: BlockingStore | None = None
        self._short = False
        self._away = ""
        self._thread = threading.Thread(target=self._run, name="gpulockd-keepalive", daemon=True)

    @property
    def started(self) -> bool:
        """Whether the thread has been started."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Begin to keep the session alive."""
        with self._mutex:
            if not self.started:
                self._thread.start()

    def wake(self) -> None:
        """Look at once, instead of at the next keepalive."""
        self._wake.set()

    def stop(self, timeout_s: float = 1.0) -> None:
        """End the session in the ledger, with all that it has, and the thread: the goodbye of a process that exits."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive() or not self.session.is_open:
            return
        session = self.session
        goodbye = verbs.end(session.keys, session="", id=session.id, token=None, reason="released", what="session")
        with suppress(GpuLockError):
            store = BlockingStore(session.url, deadline_s=timeout_s)
            store.ask(goodbye)
            store.close()

    def let_go(self) -> None:
        """End the thread and leave the session as it is: another process keeps it alive."""
        self._stopping = True
        self._wake.set()

    def descriptors(self) -> list[int]:
        """The open sockets of the thread, for a forked child to close."""
        return self._store.descriptors() if self._store is not None else []

    def _run(self) -> None:
        wait_s = self.session.keepalive_s
        while True:
            self._wake.wait(wait_s)
            self._wake.clear()
            if self._stopping:
                break
            try:
                self._keep()
                self._away = ""
                wait_s = 0.0 if self._believes_nothing() else self.session.keepalive_s
            except StoreUnavailable as away:
                self._forget_connection()
                self._away = str(away)
                wait_s = self._doubt(self._away)
            except Exception as trouble:  # noqa: BLE001 - whatever goes wrong, a body must not outlive its belief
                log.error("gpulockd: keepalive failed: %s: %s", type(trouble).__name__, trouble)
                self._forget_connection()
                wait_s = self._doubt(str(trouble))
        self._forget_connection()

    def _believes_nothing(self) -> bool:
        """Whether something is held that no answer proves any more: this process was stopped until now."""
        return boottime_s() > self.session.believed_until() and bool(self._unvouched())

    def _unvouched(self) -> list[Entry]:
        """What is held by Redis' word alone: no guard stands for it."""
        return [entry for entry in self.session.table.held() if not entry.vouched]

    def _doubt(self, why: str) -> float:
        """No answer came: give up belief when it is over. Returns how long to wait before the next try (in seconds)."""
        remaining_s = self.session.believed_until() - boottime_s()
        held = self._unvouched() if remaining_s <= 0 else self.session.table.held()
        if held and remaining_s <= 0:
            log.error("gpulockd: %d lease(s) lost, no answer from Redis: %s", len(held), why)
            for entry in held:
                entry.lose(f"cut off from Redis: {why}")
        return max(0.01, min(RETRY_S, remaining_s)) if remaining_s > 0 and held else RETRY_S

    def _connected(self) -> BlockingStore:
        """The connection; a try never outlasts belief while something is held."""
        if self._store is None:
            deadline_s = self.session.times.rpc_deadline
            remaining_s = self.session.believed_until() - boottime_s()
            if self.session.table.held() and remaining_s > 0:
                deadline_s = min(deadline_s, max(0.05, remaining_s))
            self._store = BlockingStore(self.session.url, deadline_s=deadline_s)
            self._short = deadline_s < self.session.times.rpc_deadline
        return self._store

    def _forget_connection(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _keep(self) -> None:
        session = self.session
        # A process that was stopped for longer than its belief learns it here before its body goes on for long.
        if self._believes_nothing():
            self._doubt(self._away or "this process was stopped for too long")
        asked_at = boottime_s()
        self.sent += 1
        held = [entry for entry in session.table.held() if entry.session == session.id]
        answer = self._connected().ask(session.keepalive_call(self.sent))
        if self._stopping:
            return
        if isinstance(answer, a.NoSession | a.Unopened):
            self._open_again()
            return
        session.heard(asked_at, answer)
        for id, reason in answer.lost:
            entry = session.table.get(id)
            if entry is not None:
                entry.lose(reason)
        for id in (*answer.stops, *answer.rung):
            entry = session.table.get(id)
            if entry is not None and (entry.rung_to_stop or id in answer.stops):
                entry.stopping.set()
        # A grant that was read after this process had last said what it has is unknown to a store that lost its data.
        has = {(id, token) for id, token, _ in answer.has}
        unsaid = any(
            entry.state == "held" and not entry.lost.is_set() and (entry.id, entry.token) not in has for entry in held
        )
        if session.must_assert(answer) or unsaid:
            self._open_again()
        elif session.is_behind():
            self._catch_up()
        unknown = session.take_echo(list(answer.has))
        for id in unknown if self.gives_back and not self._stopping else ():
            self._give_back(id)
        self._end_orphans()
        if self._short:
            self._forget_connection()

    def _open_again(self) -> None:
        """Say again what this process has, as a new incarnation if the old one has ended."""
        session, store = self.session, self._connected()
        for _ in range(3):
            asked_at, id = boottime_s(), session.id
            if session.opened(asked_at, store.ask(session.open_call(known_pool=True)), id):
                # Who waits asks again, and is told why it may wait longer.
                for entry in session.table.all():
                    if entry.state == "asking":
                        entry.kick_from_thread()
                return

    def _catch_up(self) -> None:
        """Read what the pool publishes: its message did not come."""
        answer = self._connected().ask(self.session.published_call())
        if isinstance(answer, Published):
            self.session.take_published(answer.version, answer.defaults)

    def _give_back(self, id: str) -> None:
        session = self.session
        if session.table.get(id) is None:
            self._connected().ask(verbs.end(session.keys, session=session.id, id=id, token=None, reason="abandoned"))

    def _end_orphans(self) -> None:
        """End tickets whose loop was closed before their end was answered."""
        session = self.session
        for entry in session.table.all():
            orphaned = entry.state in ("asking", "ending") and entry.loop.is_closed()
            if orphaned and not self._stopping:
                reason: verbs.EndReason = "released" if entry.token else "abandoned"
                self._connected().ask(session.end_call(entry, reason))
                session.table.remove(entry)
