"""POST /api/v1/leases: a place in the queue, told line by line, then the lease.

Every such request has a session of its own in the ledger, so that it waits, dies and is seen like any other program.
Four ways it goes on after the grant: the process that chose session and ticket keeps them alive itself; the lease
lasts as long as a process that was named; for a time that its user renews; or as long as the connection. Who chose a
ticket goes on with it at the next daemon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from os import close as close_descriptor
from os import urandom

import anyio
import anyio.to_thread

from gpulockd.client.keeper import Keeper
from gpulockd.client.line import Line
from gpulockd.client.session import Session
from gpulockd.client.waiting import Waiting
from gpulockd.errors import GpuLockError, LeaseLost, StoreUnavailable
from gpulockd.ledger.verbs import EndReason
from gpulockd.model import Process
from gpulockd.web import wanting
from gpulockd.web.auth import Caller
from gpulockd.web.backend import Backend
from gpulockd.web.lasting import session_of
from gpulockd.web.placing import PING_S, tell_place
from gpulockd.web.streams import Write, as_line
from gpulockd.web.term import Term, entered
from gpulockd.web.timed import Timed

RETRY_S = 0.25
GOODBYE_S = 5.0
"""How soon, and how long at most, what the store did not answer is asked again, and a goodbye may take (seconds)."""


class Holding:
    """One request for a lease, from its place in the queue to the end of the lease."""

    def __init__(self, backend: Backend, plan: wanting.Plan, caller: Caller, *, ends_session: bool = True) -> None:
        """:param ends_session: whether the session has nothing besides this, so that it ends with it"""
        self._ends_session = ends_session
        self.backend = backend
        self.plan = plan
        self.caller = caller
        self._stays = plan.pid is not None or plan.ttl_s is not None
        self._ticket = plan.ticket or urandom(16).hex()
        kept = session_of(backend.token, self._ticket, plan.process) if self._stays else None
        self.session = Session(
            backend.url,
            backend.pool,
            backend.settings.session,
            backend.terms,
            socket=backend.api_socket,
            process=plan.process,
            id=plan.session or kept,
        )
        self.keeper = Keeper(self.session, gives_back=plan.session is None)
        # The kernel's word for who will hold; a connection from afar stands for itself.
        known = caller.peer is not None and plan.process.started_ticks > 0
        pid, started = (plan.process.pid, plan.process.started_ticks) if known else (0, 0)
        self.waiting: Waiting | None = None
        self._began_at = anyio.current_time()
        self._kept_by_another = False
        self._given_back = anyio.Event()
        uid = caller.peer.uid if caller.peer is not None else -1
        self.guard = backend.guard_for(pid, started, uid, plan.spares_older)
        self.line = Line(self.session, self.keeper, self.guard)
        self._term = Term(self.line, backend.timed, plan.ttl_s, uid) if self._stays else None

    async def run(self, write: Write) -> None:
        """Wait, tell the lease, and hold it as the plan says. Whatever ends this leaves nothing behind.

        :raises GpuLockError: if there will be no lease
        """
        pidfd, goes_on = self._pidfd(), False
        self.backend.staying[self.caller.user] += self._stays
        try:
            if not await self._wait(write):
                return
            assert self.waiting is not None
            entry, backend = self.waiting.entry, self.backend
            told = self._granted_line()
            if self._term is not None and not await self.renew(None):
                raise LeaseLost("the lease has ended already", lease=entry.id, token=entry.token, reason="ended")
            # No await may stand between the bytes and letting go: who reads them may hang up at once.
            await write(told)
            if self.plan.session is not None:
                self._kept_by_another = True
                self.waiting.let_go()
            elif pidfd >= 0:
                backend.tasks.start_soon(self._hold_for_process, pidfd)
                pidfd, self._kept_by_another, goes_on = -1, True, True
            elif self._term is not None:
                backend.tasks.start_soon(self._hold_for_a_time)
                self._kept_by_another = goes_on = True
            else:
                await self._hold_for_connection(write)
        finally:
            if pidfd >= 0:
                close_descriptor(pidfd)
            if not goes_on:
                # From afar nobody can tell what the user of a closed connection still does: its gpu settles.
                await self._close("released" if self.caller.peer is not None else "left")

    def _granted_line(self) -> bytes:
        assert self.waiting is not None
        entry, backend = self.waiting.entry, self.backend
        limits_s, trusted = backend.limits_s(entry.ask.job), self.caller.trusted
        told = wanting.granted_line(entry, backend.pool, backend.url, backend.api_socket, limits_s, trusted=trusted)
        return as_line(told)

    def _pidfd(self) -> int:
        """:raises CannotHold: if the process that is named is none of the caller's"""
        if self.plan.pid is None:
            return -1
        return wanting.check_pid(self.plan.pid, self.caller, self.backend.api_socket, self.backend.store_pid())

    # Waiting.

    async def _wait(self, write: Write) -> bool:
        """Return True once the lease is there, False if the daemon stops before.

        :raises GpuLockError: if there will be none
        """
        failure: GpuLockError | None = None
        holds = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._leave_with_daemon, tasks.cancel_scope)
            tasks.start_soon(tell_place, self.backend, lambda: self.waiting, self.plan.ask.wants, write)
            try:
                await self._ready()
                self.waiting = Waiting(self.line, self.plan.ask, self.plan.patience, id=self._ticket)
                await self.waiting.hold()
                holds = True
            except GpuLockError as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return holds

    async def _leave_with_daemon(self, scope: anyio.CancelScope) -> None:
        """Who chose the ticket goes on with it at the next daemon; all others' waits end here."""
        await self.backend.stopping.wait()
        if self.plan.ticket is not None:
            self._kept_by_another = True
            if self.waiting is not None:
                self.waiting.let_go()
        scope.cancel()

    async def _ready(self) -> None:
        """Open the session, as soon as the store answers.

        :raises StoreUnavailable: if it does not within the wait limit
        """
        while True:
            try:
                return await self.line.ready()
            except StoreUnavailable:
                if anyio.current_time() - self._began_at >= self.plan.patience.max_wait_s:
                    raise
            await anyio.sleep(RETRY_S)

    # Holding.

    async def _hold_for_connection(self, write: Write) -> None:
        """Say every 5 s that the lease stands, until it does not, or the daemon stops; a gone peer cancels this."""
        assert self.waiting is not None
        entry = self.waiting.entry
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_after, self.backend.stopping.wait, tasks.cancel_scope)
            tasks.start_soon(_cancel_after, entry.lost.wait, tasks.cancel_scope)
            while True:
                await anyio.sleep(PING_S)
                await write(as_line(wanting.HeldLine()))
        if entry.lost.is_set():
            await write(as_line(wanting.LostLine(reason=entry.lost_reason)))
            # Who holds by a connection has been told on it, and stops: it has left.
            self.line.guard.leave(entry)

    def give_back(self) -> None:
        """The owner of a lease that is held for a process gives it back: nobody else can."""
        self._given_back.set()

    async def tell_again(self, process: Process, write: Write) -> bool:
        """Answer the request for it as it was answered, if it is that process's; False if it is not."""
        own = self.plan.process
        if (process.pid, process.started_ticks, process.user) != (own.pid, own.started_ticks, own.user):
            return False
        await write(self._granted_line())
        return True

    async def renew(self, ttl_s: float | None) -> bool:
        """Let the lease go on for so long from now (in seconds), None: for as long as it was asked for.

        False: it has just ended.

        :raises StoreUnavailable: if the ledger or the daemon's own folder does not take it
        """
        assert self.waiting is not None
        return self._term is not None and await self._term.renew(self.waiting.entry, ttl_s)

    async def go_on(self, told: Timed, pidfd: int) -> None:
        """Take over a lease from the daemon before, and hold it from now on.

        :param pidfd: of its process, closed in the end; -1 if it is for a time
        :raises StoreUnavailable: if the store does not answer
        """
        assert self._term is not None
        self.backend.staying[self.caller.user] += self._stays
        self._term.go_on(told)
        self.waiting = Waiting(self.line, self.plan.ask, self.plan.patience, id=told.id)
        entry = self.waiting.entry
        entered(told, entry)
        self._kept_by_another = True
        try:
            await self._ready()
        except BaseException:
            if pidfd >= 0:
                close_descriptor(pidfd)
            await self._close("expired")
            raise
        if self.session.guarded and entry.state == "held" and not entry.lost.is_set():
            self.guard.admit(entry, entry.token, tuple(gpu.key for gpu in entry.gpus))
        self.backend.holdings[entry.id] = self
        if pidfd >= 0:
            self.backend.tasks.start_soon(self._hold_for_process, pidfd)
        else:
            self.backend.tasks.start_soon(self._hold_for_a_time)

    @property
    def ends_in_s(self) -> float | None:
        """How long until its time is over (in seconds); None if it has none."""
        return None if self._term is None else self._term.ends_in_s

    async def _hold_for_process(self, pidfd: int) -> None:
        try:
            await self._hold_until(partial(anyio.wait_readable, pidfd), "died")
        finally:
            close_descriptor(pidfd)

    async def _hold_for_a_time(self) -> None:
        assert self._term is not None
        await self._hold_until(self._term.over, "expired")

    async def _hold_until(self, over: Callable[[], Awaitable[None]], by_itself: EndReason) -> None:
        """Hold until `over` returns, or the lease is lost or given back. When the daemon stops, the session lives on
        for its ttl.

        :param by_itself: why it ends when `over` has returned
        """
        assert self.waiting is not None
        entry = self.waiting.entry
        self.backend.holdings[entry.id] = self
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_after, entry.lost.wait, tasks.cancel_scope)
                tasks.start_soon(_cancel_after, self.backend.stopping.wait, tasks.cancel_scope)
                tasks.start_soon(_cancel_after, self._given_back.wait, tasks.cancel_scope)
                await over()
                self._kept_by_another = False
                tasks.cancel_scope.cancel()
        finally:
            if entry.lost.is_set() or self._given_back.is_set():
                self._kept_by_another = False
            await self._close("released" if self._given_back.is_set() else by_itself)
            del self.backend.holdings[entry.id]

    async def _close(self, reason: EndReason) -> None:
        """End what is left: the lease with `reason`, the session, the connections; or let go of them."""
        self.backend.staying[self.caller.user] -= self._stays
        with anyio.move_on_after(GOODBYE_S, shield=True):
            entry = self.waiting.entry if self.waiting is not None else None
            if self._kept_by_another:
                self.keeper.let_go()
                self.guard.stays = self._term is not None
                if self.waiting is not None:
                    self.waiting.let_go()
            else:
                if entry is not None and self._term is not None:
                    self._term.end(entry)
                if entry is not None and entry.state in ("held", "member") and not entry.lost.is_set():
                    await self.line.end(entry, reason)
                if not self._ends_session:
                    self.keeper.let_go()
                elif self.keeper.started:
                    await anyio.to_thread.run_sync(partial(self.keeper.stop, 1.0))
            await self.line.aclose()


async def _cancel_after(wait: Callable[[], Awaitable[object]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()
