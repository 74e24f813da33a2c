"""From a request to the right to enter: ask, wait for the doorbell, confirm, and look at the clock before every entry.

The waiting loop is the only sender that may bring its ticket back or confirm its claim. Whatever ends it, the entry is
given back: a cancelled wait leaves nothing.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import msgspec

from gpulockd.client.entering import Entering, NotAdmitted, must_be_let_in
from gpulockd.client.line import Line
from gpulockd.client.ownholds import OwnHolds
from gpulockd.client.refusals import deadlock_text, ended_outside, frozen_text, impossible_text, timeout_error
from gpulockd.client.table import Ask, Entry
from gpulockd.errors import GpuLockError, GpuLockTimeout, ImpossibleRequest, StoreUnavailable, WouldDeadlock
from gpulockd.ledger import answers as a

log = logging.getLogger("gpulockd")

FIRST_RETRY_S = 0.05
MOST_RETRY_S = 1.0


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait, and how to poll while notifications are away (all in seconds)."""

    max_wait_s: float
    poll_interval_s: float
    max_poll_interval_s: float
    exponential_backoff: bool


class Waiting:
    """One request of one task, until it holds or gives up."""

    def __init__(
        self,
        line: Line,
        ask: Ask,
        patience: Patience,
        *,
        id: str | None = None,
        renewed: Callable[[], Patience] | None = None,
    ) -> None:
        """:param id: the ticket's id, where the process that will hold the lease has chosen it
        :param renewed: works `patience` out again, should the first answer tell that the pool has published since
        """
        self.line = line
        self._renewed = renewed
        self._version = line.session.version
        self.ask = ask
        self.entry = self._new_entry(id)
        self._started_at = line.loop.time()
        self._go_by(patience)
        self._retry_s = FIRST_RETRY_S
        self._said_frozen = False
        self._entering = Entering(line)
        self._own_holds = OwnHolds(line.session, ask.wants)
        self.place: int | None = None
        self.queued: int | None = None

    def _go_by(self, patience: Patience) -> None:
        self.patience = patience
        self._deadline = self._started_at + patience.max_wait_s
        self._poll_s = patience.poll_interval_s

    def _new_entry(self, id: str | None = None) -> Entry:
        entry = Entry(self.ask.outlasting(self.line.session.ttl_ms), self.line.session.id, self.line.loop, id)
        self.line.session.table.add(entry)
        return entry

    @property
    def waited_s(self) -> float:
        """How long this request has waited (in seconds)."""
        return self.line.loop.time() - self._started_at

    async def hold(self) -> Entry:
        """Return the entry once it holds.

        :raises GpuLockTimeout: if the wait limit is over, at once if it is 0 and nothing is free
        :raises ImpossibleRequest: if the pool can never grant it
        :raises WouldDeadlock: if it asks for more than the lease it runs inside of
        :raises StoreUnavailable: if Redis was away when the wait limit was over
        """
        try:
            # One step usually: granted in the reply. The future is made before the request, for a doorbell can
            # ring before the reply is read.
            while True:
                try:
                    if await self._step():
                        return self.entry
                except StoreUnavailable as away:
                    await self._outlast(away)
        except GpuLockTimeout:
            raise
        except BaseException:
            if self.entry.state != "ending":
                self.line.end_later(self.entry, "abandoned")
            raise
        finally:
            self._own_holds.end()
            self.line.doorbell.forget(self.entry)

    def let_go(self) -> None:
        """Forget the ticket or lease without ending it, whatever ends `hold`: its own process goes on with it."""
        self.entry.state = "ending"
        self.line.session.table.remove(self.entry)

    async def _step(self) -> bool:
        entry, line = self.entry, self.line
        entry.signal = line.loop.create_future()
        if entry.claim is not None:
            token, entry.claim = entry.claim, None
            return await self._confirm(token)
        call = line.session.request_call(entry, wait=self.patience.max_wait_s > 0)
        answer, asked_at = await line.ask(call)
        self._retry_s = FIRST_RETRY_S
        if isinstance(answer, a.Granted):
            entry.stamp_ms = answer.now_ms - answer.waited_ms
            return await self._enter(answer, asked_at)
        if isinstance(answer, a.Waiting | a.Busy) and await self._catch_up(answer) and isinstance(answer, a.Busy):
            self._begin_again()
            return False
        if isinstance(answer, a.Waiting):
            return await self._wait(answer)
        return await self._other(answer, asked_at)

    async def _catch_up(self, answer: a.Waiting | a.Busy) -> bool:
        """Go by what the pool had published before this request, if its message was missed. Later news is for later
        requests. Returns whether it may wait now."""
        renewed, missed = self._renewed, answer.clock.version > self._version
        if renewed is not None and missed:
            await self.line.catch_up()
            self._go_by(renewed())
        self._renewed = None
        return missed and self.patience.max_wait_s > 0

    async def _enter(self, answer: a.Granted, asked_at: float) -> bool:
        """Begin to hold, if the answer still proves it: one read too late, or of a store since replaced, does not."""
        if not self.line.session.believes(asked_at):
            return await self._confirm(answer.token)
        asks = await must_be_let_in(self.line, answer)
        if asks and not await self._let_in(answer.token, answer):
            return False
        if not self.line.session.believes(asked_at) or (asks and self.line.session.must_assert(answer)):
            return await self._confirm(answer.token)
        self.entry.hold(answer.token, answer.gpus, answer.waited_ms / 1000)
        return True

    async def _confirm(self, token: int) -> bool:
        answer, asked_at = await self.line.confirm(self.entry, token)
        if isinstance(answer, a.Granted):
            return await self._enter(answer, asked_at)
        if not isinstance(answer, a.Frozen):
            self.line.guard.leave(self.entry)  # it may have been let in for a claim that has lapsed
        if isinstance(answer, a.Frozen):
            await self._sleep(min(answer.remaining_ms / 1000, self.line.session.keepalive_s))
            return False
        if isinstance(answer, a.NoSession | a.Unopened | a.Gone):
            return await self._other(answer, asked_at)
        return False

    async def _let_in(self, token: int, answer: a.Granted | a.Joined) -> bool:
        """Pass the guard of this host; False to look at the pool again. What is granted stays meanwhile."""
        entry, line = self.entry, self.line
        # Who does not want to wait for a gpu waits for the one before to leave it.
        deadline = max(self._deadline, line.loop.time() + line.session.times.rpc_deadline)
        gpus = tuple(gpu.key for gpu in answer.gpus)
        try:
            if await self._entering.let_in(
                entry, token, gpus, deadline, guarded=answer.clock.guarded or line.guard.is_alive
            ):
                return True
        except NotAdmitted as refused:
            log.warning("gpulockd: %s; asking again", refused.message)
            await line.end(entry, "abandoned")
            if entry.of:
                self.ask = self.ask.outside()
            self._entering = Entering(line)
            self._begin_again()
            return False
        except TimeoutError as away:
            raise await self._give_up(str(away)) from None
        entry.claim = token
        return False

    async def _other(self, answer: object, asked_at: float) -> bool:
        """What a request is answered besides granted and waiting."""
        line, entry = self.line, self.entry
        if isinstance(answer, a.NoSession | a.Unopened):
            line.session.is_open = False
            await line.ready()
            if entry.session != line.session.id:
                self._begin_again()
            return False
        if isinstance(answer, a.Joined):
            entry.hold(answer.token, answer.gpus, 0.0)
            entry.state, entry.of = "member", answer.lease
            if await must_be_let_in(line, answer) and not await self._let_in(answer.token, answer):
                self.entry.state, self.entry.claim = "asking", None
                return False
            if line.session.believes(asked_at):
                return True
            entry.state = "asking"
            return False
        if isinstance(answer, a.Late):
            self._begin_again()
            return False
        if isinstance(answer, a.Gone):
            if answer.reason in ("died", "unknown") or entry.session != line.session.id:
                await line.ready()
                self._begin_again()
                return False
            raise ended_outside(entry.id, answer.reason)
        raise await self._refusal(answer)

    async def _refusal(self, answer: object) -> GpuLockError:
        entry, line = self.entry, self.line
        await line.end(entry, "abandoned")
        if isinstance(answer, a.Busy):
            return await timeout_error(self)
        if isinstance(answer, a.Impossible):
            return ImpossibleRequest(impossible_text(answer, self.ask.wants, line.session.pool))
        if isinstance(answer, a.Deadlock):
            return WouldDeadlock(deadlock_text(self.ask.wants), held=(answer.lease,))
        return GpuLockError(f"the ledger answered {answer!r} to a request")

    def _begin_again(self) -> None:
        """Ask under a new id: the old one has ended with its session, or was too old."""
        self.line.doorbell.forget(self.entry)
        self.line.guard.leave(self.entry)
        self.line.session.table.remove(self.entry)
        self.entry = self._new_entry()

    async def _wait(self, answer: a.Waiting) -> bool:
        entry, line = self.entry, self.line
        line.guard.look()
        self._own_holds.watch(line.loop)
        self.place, self.queued = answer.place, answer.queued
        entry.wait_at(answer.place, answer.now_ms)
        limit_s = self._deadline - line.loop.time()
        if limit_s <= 0:
            raise await self._give_up()
        pause_s = limit_s
        if answer.frozen_ms > 0:
            pause_s = min(pause_s, answer.frozen_ms / 1000 + 0.005, line.session.keepalive_s)
            self._say_frozen(answer)
        if not line.listening:
            pause_s = min(pause_s, self._next_poll_s())
        else:
            self._poll_s = self.patience.poll_interval_s
        await self._sleep(pause_s)
        if entry.claim is None and line.loop.time() >= self._deadline:
            raise await self._give_up()
        return False

    def _next_poll_s(self) -> float:
        """The next polling pause: grows to its limit, with jitter so that waiters do not poll in step."""
        pause_s = self._poll_s * random.uniform(0.9, 1.1)
        if self.patience.exponential_backoff:
            self._poll_s = min(self._poll_s * 1.5, max(self.patience.max_poll_interval_s, self._poll_s))
        return pause_s

    def _say_frozen(self, answer: a.Waiting) -> None:
        if not self._said_frozen:
            self._said_frozen = True
            log.warning("gpulockd: %s", frozen_text(answer, self.line.session.pool))

    async def _sleep(self, pause_s: float) -> None:
        """Sleep until the doorbell rings, somebody kicks, or `pause_s` is over."""
        signal = self.entry.signal
        assert signal is not None
        timer = self.line.loop.call_later(pause_s, self.entry.kick)
        try:
            await signal
        finally:
            timer.cancel()

    async def _give_up(self, why: str = "") -> GpuLockError:
        await self.line.end(self.entry, "timed_out")
        error = await timeout_error(self)
        if not why:
            return error
        told = {name: getattr(error, name) for name in ("waited_s", "max_wait_s", "place", "queued")}
        return GpuLockTimeout(f"{error.message}; {why}", **told)

    async def _outlast(self, away: StoreUnavailable) -> None:
        """Redis did not answer: try again with the same id until the wait limit is over."""
        left_s = self._deadline - self.line.loop.time()
        if left_s <= 0:
            raise away
        self.entry.signal = self.line.loop.create_future()
        await self._sleep(min(self._retry_s, left_s))
        self._retry_s = min(2 * self._retry_s, MOST_RETRY_S)
