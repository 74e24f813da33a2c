"""Locks inside locks: who holds what here, and whether a new request would wait for itself.

The same task (for sync code: the same thread) that asks for what its lease covers joins it. Asking for more while
holding never waits. A child task or thread does not join by itself: if a lease of its inherited context stands in its
way, it is told so at once, for it would wait for its own parent.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

import anyio

from gpulockd.client.advising import Hold, one_call
from gpulockd.client.variables import Variables
from gpulockd.errors import WouldDeadlock
from gpulockd.model import Gpu, Wants

if TYPE_CHECKING:  # names of types only
    from gpulockd.client.lease import LeaseFacts


class Owner:
    """Who entered a block: a task, by a weak reference since ids are used again, or a thread."""

    __slots__ = ("_task", "key")

    def __init__(self) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        self._task = weakref.ref(task) if task is not None else None
        self.key = ("task", id(task)) if task is not None else ("thread", threading.get_ident())

    def same(self, other: Owner) -> bool:
        """Whether both are the same living task, or the same thread."""
        if self.key != other.key:
            return False
        return self._task is None or (other._task is not None and self._task() is other._task() is not None)


ACQUIRED = object()
"""What uses a lease that was acquired without a block."""


class Held:
    """A lease that a task or thread holds, what uses it, and the bodies that end with it.

    It ends when the last body that joined it has ended, whoever that is.
    """

    __slots__ = ("_is_over", "_mutex", "_users", "lease", "owner", "scopes", "wants")

    def __init__(self, lease: LeaseFacts, owner: Owner, wants: Wants) -> None:
        self.lease = lease
        self.owner = owner
        self.wants = wants
        self.scopes: list[anyio.CancelScope] = []
        self._users: set[object] = set()
        self._is_over = False
        self._mutex = threading.RLock()  # a signal handler may end another block of this lease in the middle
        # Not a method: the table of what is held would keep a lease that its holder has dropped.
        lease._entry.on_lost = functools.partial(_cancel, self.scopes)

    def join(self, user: object) -> bool:
        """Use it; False if its last user has just ended it."""
        with self._mutex:
            if not self._is_over:
                self._users.add(user)
            return not self._is_over

    def part(self, user: object) -> bool:
        """End a use, once: said again it changes nothing. Returns whether nobody uses it any more."""
        with self._mutex:
            self._users.discard(user)
            self._is_over = not self._users
            return self._is_over


def _cancel(scopes: list[anyio.CancelScope]) -> None:
    """A lease was lost: its bodies in its own loop are cancelled."""
    for scope in tuple(scopes):
        scope.cancel()


_holding: ContextVar[tuple[Held, ...]] = ContextVar("gpulockd_holding", default=())


def owner_here() -> Owner:
    """Who asks: the current task where this thread runs a loop, else the thread."""
    return Owner()


def holding() -> tuple[Held, ...]:
    """What this context holds or has inherited and is still held by this process; innermost last."""
    return tuple(held for held in _holding.get() if held.lease.living)


_PAIR = Variables("GPULOCKD_LEASE", "GPULOCKD_TOKEN")


def inherited_pair(pool: str | None) -> tuple[str, int] | None:
    """The lease that this process may join: of its parent before a fork, or of the run that started it."""
    for held in reversed(_holding.get()):
        if held.lease._session.pid != os.getpid() and not held.lease._ended and pool in (None, held.lease.pool):
            return held.lease.id, held.lease.token
    lease, token = _PAIR.read()
    if lease and token and token.isdigit():
        return lease, int(token)
    return None


def enter(held: Held) -> None:
    """Note in this context that `held` has begun. What the parent held before a fork stays, to be joined again."""
    helds = _holding.get()
    if helds:
        mine = os.getpid()
        helds = tuple(other for other in helds if other.lease.living or other.lease._session.pid != mine)
    _holding.set((*helds, held))


def leave(held: Held) -> None:
    """Forget `held` in this context."""
    _holding.set(tuple(other for other in _holding.get() if other is not held))


def covers(wants_held: Wants, gpus: tuple[Gpu, ...], wants: Wants) -> bool:
    """Whether a lease gives what is asked for. A whole card may be shared further; a budget may not grow."""
    if not wants_held.exclusive and wants.exclusive:
        return False
    keys = {gpu.key for gpu in gpus}
    if wants.keys:
        return keys.issuperset(wants.keys) and all(
            _suits(wants_held, gpu, wants) for gpu in gpus if gpu.key in wants.keys
        )
    return sum(_suits(wants_held, gpu, wants) for gpu in gpus) >= wants.count


def _suits(wants_held: Wants, gpu: Gpu, wants: Wants) -> bool:
    if not wants_held.exclusive:
        return wants.memory_mib <= wants_held.memory_mib
    return wants.memory_mib == 0 or (gpu.memory_mib or 0) >= wants.memory_mib


def joinable(wants: Wants, pool: str | None) -> Held | None:
    """The lease of this very task or thread that covers `wants`, innermost first."""
    helds = holding()
    if not helds:
        return None
    me = owner_here()
    for held in reversed(helds):
        if held.owner.same(me) and pool in (None, held.lease.pool) and covers(held.wants, held.lease.gpus, wants):
            return held
    return None


def parent_lease(wants: Wants, pool: str | None) -> Held | None:
    """An inherited lease that covers `wants`, for `nested="join"` in a child task or thread."""
    for held in reversed(holding()):
        if pool in (None, held.lease.pool) and covers(held.wants, held.lease.gpus, wants):
            return held
    return None


def may_wait(pool: str | None) -> tuple[Held, ...]:
    """The leases of this context that forbid waiting in `pool`; empty where waiting is safe."""
    return tuple(held for held in holding() if pool in (None, held.lease.pool))


def in_the_way(held: Held, wants: Wants) -> bool:
    """Whether this lease itself must end before `wants` can be granted to a child of its holder."""
    keys = {gpu.key for gpu in held.lease.gpus}
    return not wants.keys or bool(keys.intersection(wants.keys))


def would_deadlock(
    helds: tuple[Held, ...], own: Sequence[Held], wants: Wants, offered: Sequence[Gpu] = ()
) -> WouldDeadlock:
    """The error, with the one call to make.

    :param own: those of them that the asking task or thread holds itself
    :param offered: the pool's gpus, if they are known
    """
    keys = tuple(dict.fromkeys(gpu.key for held in helds for gpu in held.lease.gpus))
    shown = ", ".join(keys)
    if any(covers(held.wants, held.lease.gpus, wants) for held in own):
        return WouldDeadlock(
            f"this task holds {shown} already, and acquire() makes a second lease: go on with the one that it has, or "
            "write blocks (`with gpu_lock():`), of which the inner joins the outer",
            held=keys,
        )
    if own:
        holds = [Hold(held.wants, tuple(gpu.key for gpu in held.lease.gpus)) for held in helds]
        return WouldDeadlock(
            f"this task holds {shown} and asks for {wants}: {one_call(holds, wants, offered)}", held=keys
        )
    return WouldDeadlock(
        f"this task was started inside a block that holds {shown} and asks for {wants}, so it would wait for its own "
        "parent: start it outside the block, or say nested='join' to share the parent's lease (they are then not kept "
        "apart) or nested='wait'. On Python 3.11 asyncio.wait_for makes such a task; use asyncio.timeout",
        held=keys,
    )
