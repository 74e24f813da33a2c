"""From a `gpu_lock` to its lease: completes the wish, guards against waiting for oneself, and waits."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from gpulockd.client import frameworks, nesting, phrases, wishes
from gpulockd.client.lease import Lease
from gpulockd.client.parking import Parking
from gpulockd.client.process import known_session, line_for
from gpulockd.client.table import Ask
from gpulockd.client.unlocked import unlocked_lease
from gpulockd.client.variables import Variables
from gpulockd.client.waiting import FIRST_RETRY_S, MOST_RETRY_S, Patience, Waiting
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockTimeout, StoreUnavailable

if TYPE_CHECKING:  # names of types only
    from gpulockd.client.line import Line
    from gpulockd.client.lock import gpu_lock
    from gpulockd.settings import GpuLockBlock

log = logging.getLogger("gpulockd")

_DISABLE = Variables("GPULOCKD_DISABLE")

FIRST_CONTACT = 2
"""How many deadlines a store that has never answered may take, before the error says so."""


class Getting:
    """One call's way to a lease. Made in the caller's context, so that it sees what the caller holds."""

    def __init__(self, lock: gpu_lock) -> None:
        self.lock = lock
        self.job = frameworks.named(lock.job, lock._names_task)
        self.inside = nesting.inherited_pair(lock.pool)
        mine = nesting.may_wait(lock.pool) if lock.nested != "wait" else ()
        self.forbids, self._own = mine, list[nesting.Held]()
        if mine:
            me = nesting.owner_here()
            self._own = [held for held in mine if held.owner.same(me)]
            # Holding and asking for more never waits; a child waits unless its parent's lease stands in its way.
            self.forbids = tuple(held for held in mine if self._own or nesting.in_the_way(held, lock.wants))

    async def lease(self, max_wait_s: float | None) -> Lease:
        """Wait for the lease.

        :param max_wait_s: overrides the lock's own wait limit (in seconds)
        """
        while True:
            lease = await self._granted(max_wait_s)
            if lease.stands:
                lease._clean_up_with(self.lock.cleanup)
                return lease
            await lease._undo()

    async def _granted(self, max_wait_s: float | None) -> Lease:
        lock = self.lock
        if _DISABLE.raw() == (b"1",):
            return unlocked_lease(lock.wants, self.job)
        line = await self._line(max_wait_s)
        block = wishes.gpu_lock_block(line.session.defaults, line.session.id, self.job.task)
        wait = lock.max_wait_time if max_wait_s is None else max_wait_s
        if self.forbids:
            wait = 0.0

        def patience(block: GpuLockBlock) -> Patience:
            return wishes.patience_of(block, wait, lock.poll_interval)

        def renewed() -> Patience:
            return patience(wishes.gpu_lock_block(line.session.defaults, line.session.id, self.job.task))

        lock_timeout_s = block.lock_timeout if lock.lock_timeout is None else lock.lock_timeout
        parked = lock.turn.parked if lock.turn is not None else ""
        ask = Ask(lock.wants, lock.priority, self.job, max(50, round(lock_timeout_s * 1000)), self.inside, parked)
        if lock.turn is None:
            waiting = Waiting(line, ask, patience(block), renewed=renewed)
        else:
            waiting = Parking(line, ask, patience(block), lock.turn, renewed=renewed)
        try:
            entry = await waiting.hold()
        except GpuLockTimeout as busy:
            if self.forbids:
                raise nesting.would_deadlock(self.forbids, self._own, lock.wants, busy.offered) from busy
            if waiting.patience.max_wait_s > 0:
                phrases.not_acquired(self.job.task, busy.message)
            raise
        if entry.gpus[0].index is None and not lock.wants.keys:
            log.warning(
                "gpulockd: nobody offers GPUs in pool %s, so this lock is on a name and on no card (GPULOCKD_POOL, "
                "or start `gpulockd serve`)",
                line.session.pool,
            )
        phrases.acquired(self.job.task)
        return Lease(line, entry)

    async def _line(self, max_wait_s: float | None) -> Line:
        """The line, as soon as the store answers.

        A store that has never answered this process is most likely misnamed, so it gets `FIRST_CONTACT` deadlines;
        one that has is waited for until the wait limit.
        """
        lock = self.lock
        began_at = boottime_s()
        pause_s = FIRST_RETRY_S
        while True:
            try:
                return await line_for(lock.pool)
            except StoreUnavailable:
                session = known_session(lock.pool)
                if session is None:
                    raise
                limit_s = FIRST_CONTACT * session.times.rpc_deadline
                if session.clock is not None:
                    wait = lock.max_wait_time if max_wait_s is None else max_wait_s
                    block = wishes.gpu_lock_block(session.defaults, session.id, self.job.task)
                    limit_s = block.max_wait_time if wait is None else wait
                if boottime_s() - began_at >= limit_s:
                    raise
            await asyncio.sleep(min(pause_s, limit_s))
            pause_s = min(2 * pause_s, MOST_RETRY_S)
