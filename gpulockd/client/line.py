"""A line: what one event loop has of a session: a command connection, and a subscription to the session's doorbell.

A message is only a hint, so whoever was waiting asks for the state when a broken subscription has come back.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from gpulockd.client import emergency
from gpulockd.client.admitting import GuardLink
from gpulockd.client.belief import BeliefWatch
from gpulockd.client.doorbell import Begun, ConfirmAnswer, Doorbell, confirm_call
from gpulockd.client.guarded import Admits
from gpulockd.client.keeper import Keeper
from gpulockd.client.listening import Listening
from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger.publishing import Published
from gpulockd.ledger.store import Store
from gpulockd.ledger.verbs import Call, EndReason

T = TypeVar("T")
log = logging.getLogger("gpulockd")

RETRY_S = 0.05
MOST_RETRY_S = 1.0

STALE_S = 0.1
"""A command that fails sooner (in seconds) has met a connection that was broken before."""


class Line:
    """The connections of one session in one event loop, opened at first use and closed with the loop."""

    def __init__(self, session: Session, keeper: Keeper, guard: Admits | None = None) -> None:
        """:param guard: who lets in what begins here, where it is not the guard's socket"""
        self.session = session
        self.keeper = keeper
        self.loop = asyncio.get_running_loop()
        self.store = Store(session.url, deadline_s=session.times.rpc_deadline)
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: asyncio.Task[None] | None = None
        self.doorbell = Doorbell(session, keeper, self.loop, self.store)
        self._hearing = Listening(session, keeper, self.doorbell)
        self.belief = BeliefWatch(session, self.loop)
        self.guard = self.doorbell.guard = guard or GuardLink(session)
        session.on_guarded.append(self._look_at_guard)

    def __repr__(self) -> str:
        return f"<Line {self.session.keys.pool} {'listening' if self.listening else 'polling'}>"

    @property
    def listening(self) -> bool:
        """Whether the doorbell is heard, so that nobody need poll."""
        return self._hearing.stands

    async def ready(self) -> None:
        """Return once this loop hears its doorbell and the session is open.

        :raises StoreUnavailable: if Redis does not answer
        :raises ConfigError: if it may not be used, or the pool belongs to another host
        """
        if self.session.is_open and self._hearing.is_current:
            return
        async with self._opening:
            try:
                if not self.session.is_open:
                    await self.open_session()
                if not self._hearing.is_current:
                    # Only the first subscription may be missing; later ones are `_listen`'s to open again.
                    await (self._hearing.subscribe() if self._listener else self._hearing.subscribe_or_poll())
            except BaseException:
                if self._listener is None:
                    await self.store.aclose()
                raise
            if self._listener is None:
                self._listener = self.track(self._listen())

    async def open_session(self) -> None:
        """Open the session, as a new incarnation if the old one has ended."""
        session = self.session
        if session.clock is None:
            await self.store.check()
        known_pool: bool | None = None
        for _ in range(4):
            asked_at, id = boottime_s(), session.id
            answer = await self.store.ask(session.open_call(known_pool))
            if session.opened(asked_at, answer, id):
                if known_pool is False:
                    await self.store.enlist_pool(session.pool)
                self.keeper.start()
                return
            if isinstance(answer, a.AskFleet):
                known_pool = await self.store.knows_pool(session.pool)
        raise StoreUnavailable(f"the session in pool {session.pool} ended as often as it was opened")

    async def ask(self, call: Call[T], begun: Begun | None = None) -> tuple[T, float]:
        """Send a script of this session. Returns its answer and when it was asked (seconds on CLOCK_BOOTTIME)."""
        asked_at = begun.asked_at if begun is not None else boottime_s()
        try:
            answer = await self.store.ask(call, begun.reply if begun is not None else None)
        except StoreUnavailable:
            if boottime_s() - asked_at > STALE_S:
                raise
            # A connection that had broken unnoticed; every verb may be repeated.
            asked_at = boottime_s()
            answer = await self.store.ask(call)
        if call.extends and isinstance(answer, a.Answer) and not isinstance(answer, a.NoSession):
            self.session.heard(asked_at, answer)
            behind = answer.clock.version > self.session.version
            # A thread's sleep takes longer than it was meant to where the machine was suspended meanwhile.
            if behind or self.session.must_assert(answer) or not self.session.is_kept:
                self.keeper.wake()
        return answer, asked_at

    async def catch_up(self) -> None:
        """Read what the pool publishes, where an answer has told that its message did not come.

        :raises StoreUnavailable: if Redis does not answer
        """
        if self.session.is_behind():
            answer = await self.store.ask(self.session.published_call())
            if isinstance(answer, Published):
                self.session.take_published(answer.version, answer.defaults)

    # Ending, also when nobody waits for it any more.

    async def end(self, entry: Entry, reason: EndReason) -> None:
        """End a ticket or lease: the normal release, and if that fails the emergency release.

        Cancelling this leaves the end to a task of its own.
        """
        entry.state = "ending"
        self.guard.leave(entry)
        try:
            await self._end_once(entry, reason)
        except GpuLockError as away:
            emergency.say(entry, away)
            self.track(self._end_until_answered(entry, reason, afresh=True))
        except BaseException:
            self.track(self._end_until_answered(entry, reason))
            raise

    def end_later(self, entry: Entry, reason: EndReason) -> asyncio.Task[None]:
        """End a ticket or lease from a task of its own, which no cancellation of the caller touches."""
        entry.state = "ending"
        self.guard.leave(entry)
        return self.track(self._end_until_answered(entry, reason))

    async def _end_once(self, entry: Entry, reason: EndReason, *, afresh: bool = False) -> None:
        if afresh:
            answer = await emergency.end_afresh(self.session, entry, reason)
        else:
            answer, _ = await self.ask(self.session.end_call(entry, reason))
        if isinstance(answer, a.NoSession | a.Unopened):
            self.keeper.wake()
        self.session.table.remove(entry)

    async def _end_until_answered(self, entry: Entry, reason: EndReason, *, afresh: bool = False) -> None:
        """:param afresh: whether the normal release has failed, so that this is the emergency release"""
        pause_s, failed = RETRY_S, afresh
        try:
            while True:
                if failed:
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, MOST_RETRY_S)
                try:
                    return await self._end_once(entry, reason, afresh=afresh)
                except GpuLockError as away:
                    failed = True
                    if not afresh:
                        afresh = True
                        emergency.say(entry, away)
                    elif emergency.is_left(self.session, self.keeper, entry):
                        return None
        except asyncio.CancelledError:
            # The loop is being closed: one last try; after it the keepalive thread sends the end.
            try:
                await self._end_once(entry, reason, afresh=afresh)
            except GpuLockError:
                self.keeper.wake()
            raise

    # The doorbell.

    async def _listen(self) -> None:
        try:
            await self._hearing.run()
        finally:
            await self._close()

    async def confirm(self, entry: Entry, token: int) -> tuple[ConfirmAnswer, float]:
        """Ask whether a claim stands, or hear what the doorbell has asked already. Returns as `ask`."""
        begun = self.doorbell.begun(entry, token)
        return await self.ask(confirm_call(self.session, entry, token), begun)

    # Tasks of the line's own, outside every scope of the caller.

    def track(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` in a task that is kept until it ends and whose failure is logged."""
        task = self.loop.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._untrack)
        return task

    def _untrack(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), GpuLockError):
            log.error("gpulockd: %s", task.exception())

    def hang_up(self) -> None:
        """The session has ended for good: close the connections soon; from any thread."""
        with suppress(RuntimeError):  # the loop is closed, and they with it
            self.loop.call_soon_threadsafe(self._stop_listening)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.cancel()

    async def aclose(self) -> None:
        """Close the connections now, not only with the loop."""
        if self._listener is None:
            await self._close()
            return
        self._listener.cancel()
        await asyncio.wait([self._listener])

    async def _close(self) -> None:
        """Close the connections, after what is under way in this loop has ended."""
        deadline = self.loop.time() + self.session.times.rpc_deadline
        # Tasks of a closing loop end at their own pace.
        while self.loop.time() < deadline and (len(self._tasks) > 1 or self._any_entry()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._listener = None
        self.belief.end()
        self.guard.close()
        self.session.on_guarded.remove(self._look_at_guard)
        await self._hearing.aclose()
        await self.store.aclose()

    def descriptors(self) -> list[int]:
        """The open sockets of this line, for a forked child to close."""
        return self.store.descriptors() + self._hearing.descriptors() + self.guard.descriptors()

    def _look_at_guard(self) -> None:
        """The pool has got a guard: what is held here is told to it; from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.guard.look)
        except RuntimeError:  # the loop is closed
            return

    def _any_entry(self) -> bool:
        return any(entry.loop is self.loop and entry.state != "held" for entry in self.session.table.all())
