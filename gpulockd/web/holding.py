"""POST /api/v1/leases: a place in the queue, told line by line, then the lease.

Every such request has a session of its own in the ledger, so that it waits, dies and is seen like any other program.
Four ways it goes on after the grant: the process that chose session and ticket keeps them alive itself; the lease
lasts as long as a process that was named; for a time that its user renews; or as long as the connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from os import close as close_descriptor

import anyio
import anyio.to_thread

from gpulockd.client.keeper import Keeper
from gpulockd.client.line import Line
from gpulockd.client.session import Session
from gpulockd.client.waiting import Waiting
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger.verbs import EndReason
from gpulockd.web import wanting
from gpulockd.web.auth import Caller
from gpulockd.web.backend import Backend
from gpulockd.web.placing import place_of
from gpulockd.web.problems import of_error, refusal
from gpulockd.web.streams import Stream, Write, as_line
from gpulockd.web.table import Visit

PING_S = 5.0
GATHER_S = 0.1
RETRY_S = 0.25
GOODBYE_S = 5.0
MOST_WAITERS = 256
"""How many leases one user may ask for at a time through the daemon; each costs a thread and three connections."""


async def ask_lease(visit: Visit) -> Stream:
    """Ask for gpus; the answer is one JSON object a line.

    :raises ImpossibleRequest: if nothing can be asked for so
    :raises ConfigError: if a duration cannot be read
    :raises ProblemError: 429 if this user has too many such requests open
    """
    backend, caller = visit.backend, visit.caller
    plan = wanting.plan_of(visit.body, backend.published(), caller)
    who = caller.user
    if backend.waiters[who] >= MOST_WAITERS:
        detail = f"{backend.waiters[who]} requests of {who or 'TCP clients'} are open"
        raise refusal(429, "too_many", detail, "end some of them, or use the Python client, which shares one session")

    async def work(write: Write) -> None:
        backend.waiters[who] += 1
        try:
            await Holding(backend, plan, caller).run(write)
        finally:
            backend.waiters[who] -= 1

    return Stream(
        work,
        media_type="application/x-ndjson",
        on_error=lambda error: as_line(wanting.FailedLine(problem=of_error(error))),
    )


class Holding:
    """One request for a lease, from its place in the queue to the end of the lease."""

    def __init__(self, backend: Backend, plan: wanting.Plan, caller: Caller) -> None:
        self.backend = backend
        self.plan = plan
        self.caller = caller
        self.session = Session(
            backend.url,
            backend.pool,
            backend.settings.session,
            backend.terms,
            socket=backend.api_socket,
            process=plan.process,
            id=plan.session,
        )
        self.keeper = Keeper(self.session, gives_back=plan.session is None)
        # The kernel's word for who will hold; a connection from afar stands for itself.
        known = caller.peer is not None and plan.process.started_ticks > 0
        pid, started = (plan.process.pid, plan.process.started_ticks) if known else (0, 0)
        guard = backend.guard_for(pid, started, caller.peer.uid if caller.peer is not None else -1)
        self.line = Line(self.session, self.keeper, guard)
        self.waiting: Waiting | None = None
        self._began_at = anyio.current_time()
        self._kept_by_another = False
        self._given_back = anyio.Event()
        self._renewed = anyio.Event()
        self._until_s = 0.0

    async def run(self, write: Write) -> None:
        """Wait, tell the lease, and hold it as the plan says. Whatever ends this leaves nothing behind.

        :raises GpuLockError: if there will be no lease
        """
        pidfd = self._pidfd()
        try:
            if not await self._wait(write):
                return
            assert self.waiting is not None
            entry, backend = self.waiting.entry, self.backend
            limits_s = backend.limits_s(entry.ask.job)
            told = wanting.granted_line(
                entry, backend.pool, backend.url, backend.api_socket, limits_s, trusted=self.caller.trusted
            )
            # No await may stand between the bytes and letting go: who reads them may hang up at once.
            await write(as_line(told))
            if self.plan.session is not None:
                self._kept_by_another = True
                self.waiting.let_go()
            elif pidfd >= 0:
                backend.tasks.start_soon(self._hold_for_process, pidfd)
                pidfd, self._kept_by_another = -1, True
                return
            elif self.plan.ttl_s is not None:
                self.renew(self.plan.ttl_s)
                backend.tasks.start_soon(self._hold_for_a_time)
                self._kept_by_another = True
                return
            else:
                await self._hold_for_connection(write)
        finally:
            if pidfd >= 0:
                close_descriptor(pidfd)
            if (self.plan.pid is None and self.plan.ttl_s is None) or not self._kept_by_another:
                # From afar nobody can tell what the user of a closed connection still does: its gpu settles.
                await self._close("released" if self.caller.peer is not None else "left")

    def _pidfd(self) -> int:
        """Return a pidfd of the process that the lease is to last as long as, -1 if none is named.

        :raises CannotHold: if it is none of the caller's
        """
        if self.plan.pid is None:
            return -1
        return wanting.check_pid(self.plan.pid, self.caller, self.backend.api_socket)

    # Waiting.

    async def _wait(self, write: Write) -> bool:
        """Return True once the lease is there, False if the daemon stops before.

        :raises GpuLockError: if there will be none
        """
        failure: GpuLockError | None = None
        holds = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._leave_with_daemon, tasks.cancel_scope)
            tasks.start_soon(self._tell_place, write)
            try:
                await self._ready()
                self.waiting = Waiting(self.line, self.plan.ask, self.plan.patience, id=self.plan.ticket)
                await self.waiting.hold()
                holds = True
            except GpuLockError as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return holds

    async def _leave_with_daemon(self, scope: anyio.CancelScope) -> None:
        """A process that chose its ticket goes on with it at the next daemon; all others' waits end here."""
        await self.backend.stopping.wait()
        if self.plan.session is not None:
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

    async def _tell_place(self, write: Write) -> None:
        """Say the place and who is in the way: when it changes, and every 5 s."""
        feed = self.backend.feed
        said: tuple[object, ...] = ()
        said_at = 0.0
        await anyio.sleep(GATHER_S)
        while True:
            seen = feed.last
            id, usual = (self.waiting.entry.id, self.waiting.place) if self.waiting is not None else ("", None)
            line, facts = await place_of(self.backend, id, usual, self.plan.ask.wants)
            if facts != said or anyio.current_time() - said_at >= PING_S - GATHER_S:
                said, said_at = facts, anyio.current_time()
                await write(as_line(line))
            with anyio.move_on_after(max(GATHER_S, said_at + PING_S - anyio.current_time())):
                await feed.changed(seen)
            await anyio.sleep(GATHER_S)

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

    def renew(self, ttl_s: float | None) -> None:
        """Let the lease go on for so long from now (in seconds), None: for as long as it was asked for."""
        self._until_s = boottime_s() + (ttl_s or self.plan.ttl_s or 0.0)
        self._renewed.set()
        self._renewed = anyio.Event()

    @property
    def ends_in_s(self) -> float | None:
        """How long until its time is over (in seconds); None if it has none."""
        return None if self.plan.ttl_s is None else max(0.0, self._until_s - boottime_s())

    async def _hold_for_process(self, pidfd: int) -> None:
        try:
            await self._hold_until(partial(anyio.wait_readable, pidfd), "died")
        finally:
            close_descriptor(pidfd)

    async def _hold_for_a_time(self) -> None:
        await self._hold_until(self._time_is_over, "expired")

    async def _time_is_over(self) -> None:
        while (remaining_s := self.ends_in_s or 0.0) > 0:
            with anyio.move_on_after(remaining_s):
                await self._renewed.wait()

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
            del self.backend.holdings[entry.id]
            if entry.lost.is_set() or self._given_back.is_set():
                self._kept_by_another = False
            await self._close("released" if self._given_back.is_set() else by_itself)

    async def _close(self, reason: EndReason) -> None:
        """End what is left: the lease with `reason`, the session, the connections; or let go of them."""
        with anyio.move_on_after(GOODBYE_S, shield=True):
            entry = self.waiting.entry if self.waiting is not None else None
            if self._kept_by_another:
                self.keeper.let_go()
                if self.waiting is not None:
                    self.waiting.let_go()
            else:
                if entry is not None and entry.state in ("held", "member") and not entry.lost.is_set():
                    await self.line.end(entry, reason)
                if self.keeper.started:
                    await anyio.to_thread.run_sync(partial(self.keeper.stop, 1.0))
            await self.line.aclose()


async def _cancel_after(wait: Callable[[], Awaitable[object]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()
