"""From a `gpu_lock` to its lease: completes the wish, guards against waiting for oneself, and waits."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from gpulockd.client import nesting, wishes
from gpulockd.client.lease import Lease
from gpulockd.client.process import line_for
from gpulockd.client.table import Ask
from gpulockd.client.unlocked import unlocked_lease
from gpulockd.client.waiting import Waiting
from gpulockd.errors import GpuLockTimeout

if TYPE_CHECKING:  # names of types only
    from gpulockd.client.lock import gpu_lock

log = logging.getLogger("gpulockd")


class Getting:
    """One call's way to a lease. Made in the caller's context, so that it sees what the caller holds."""

    def __init__(self, lock: gpu_lock) -> None:
        self.lock = lock
        self.inside = nesting.inherited_pair(lock.pool)
        mine = nesting.may_wait(lock.pool) if lock.nested != "wait" else ()
        me = nesting.owner_here()
        own = [held for held in mine if held.owner == me]
        # Holding and asking for more never waits; a child waits unless its parent's lease stands in its way.
        self.forbids = tuple(held for held in mine if own or nesting.in_the_way(held, lock.wants))

    async def lease(self, max_wait_s: float | None) -> Lease:
        """Wait for the lease.

        :param max_wait_s: overrides the lock's own wait limit (in seconds)
        """
        lock = self.lock
        if os.environ.get("GPULOCKD_DISABLE") == "1":
            return unlocked_lease(lock.wants, lock.job)
        line = await line_for(lock.pool)
        block = wishes.gpu_lock_block(line.session.defaults)
        wait = lock.max_wait_time if max_wait_s is None else max_wait_s
        if self.forbids:
            wait = 0.0
        patience = wishes.patience_of(block, wait, lock.poll_interval)
        lock_timeout_s = block.lock_timeout if lock.lock_timeout is None else lock.lock_timeout
        ask = Ask(lock.wants, lock.priority, lock.job, max(50, round(lock_timeout_s * 1000)), self.inside)
        waiting = Waiting(line, ask, patience)
        try:
            entry = await waiting.hold()
        except GpuLockTimeout as busy:
            if self.forbids:
                raise nesting.would_deadlock(self.forbids, lock.wants) from busy
            raise
        return Lease(line, entry)
