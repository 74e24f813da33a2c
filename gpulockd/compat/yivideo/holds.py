"""What the blocks and managers of this process hold, so that `release_lock` finds its own run's lease and no other.

Its law: a name is not a run. A task's name finds only what the asking thread or task took itself; the id of a run,
which no other run has, finds what was taken by hand from anywhere in the process. A block that runs in another thread
is not ended behind its back, and what a forked child inherits is its parent's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from gpulockd.client.lease import BlockingLease
from gpulockd.client.lock import gpu_lock
from gpulockd.client.nesting import owner_here


class Hold:
    """One entry into a lock. `leave` is how `release_lock` ends it; `by_hand`: there is no block that would."""

    __slots__ = ("_owner", "_pid", "by_hand", "lease", "leave", "lock")

    def __init__(self, lock: gpu_lock, lease: BlockingLease) -> None:
        self.lock = lock
        self.lease = lease
        self.leave: Callable[[], None] = lease.release
        self.by_hand = False
        self._owner = owner_here()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Hold of {self.lease.task} {self.lease!r}>"

    @property
    def is_of_this_process(self) -> bool:
        """Whether this very process took it."""
        return self._pid == os.getpid()

    @property
    def is_mine(self) -> bool:
        """Whether the thread or task that asks took it."""
        return self.is_of_this_process and self._owner.same(owner_here())

    @property
    def is_being_ended(self) -> bool:
        """Whether it was given back, and Redis has not answered yet, so that it is asked again."""
        lease = self.lease
        return not lease.living and lease._session.table.get(lease.id) is not None

    @property
    def is_torn(self) -> bool:
        """Whether its block is over without a word: a signal handler has torn its end."""
        return self.is_of_this_process and not self.lease.living and not self.lock._uses.has(self.lease)

    def may_be_ended_by(self, run: str) -> bool:
        """Whether who asks may end it as `run`: the name of its task, or the id of its run."""
        if self.is_mine:
            return run in (self.lease.task, self.lease.task_id)
        return self.by_hand and self.is_of_this_process and run == self.lease.task_id


_holds: list[Hold] = []
"""The innermost last. Threads append and remove; both are one step."""


def begun(lock: gpu_lock, lease: BlockingLease) -> Hold:
    """Note that `lock` was entered."""
    for other in tuple(_holds):
        if other.is_torn:
            with suppress(ValueError):
                _holds.remove(other)
    hold = Hold(lock, lease)
    _holds.append(hold)
    return hold


def entered_by_hand(lock: object, leave: Callable[[], None]) -> None:
    """Whoever releases `lock` leaves it as a block would."""
    for hold in _holds:
        if hold.lock is lock:
            hold.leave, hold.by_hand = leave, True


def ended(lock: object) -> None:
    """Forget the innermost entry into `lock`: of this thread or task, else of the one that has left it to this one."""
    entered = [hold for hold in _holds if hold.lock is lock]
    for hold in sorted(entered, key=lambda hold: hold.is_mine)[-1:]:
        _holds.remove(hold)


def of_run(run: str, key: str) -> Hold | None:
    """The innermost hold of a run on a lock, lost ones too, if who asks may end it; else None."""
    mine = (hold for hold in reversed(_holds) if hold.may_be_ended_by(run))
    return next((hold for hold in mine if any(gpu.key == key for gpu in hold.lease.gpus)), None)


def living_of(task_id: str) -> Hold | None:
    """The innermost living hold of the run with that id."""
    mine = (hold for hold in reversed(_holds) if hold.is_of_this_process and hold.lease.living)
    return next((hold for hold in mine if hold.lease.task_id == task_id), None)
