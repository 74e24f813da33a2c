"""The blocks of a `gpu_lock`: which are entered, by whom, and what becomes of one whose end is torn.

A signal handler may raise at any moment (Ctrl-C, Celery's soft time limit), also before the first line of `__exit__`,
where no `try` could catch it. So what a `with` statement calls at its end is an object that lives as long as the block:
Python fetches it before the block is entered, and drops it behind the block however that was left. When it is dropped,
it does what was not done.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import anyio

from gpulockd.client import nesting
from gpulockd.client.lease import BlockingLease, Lease
from gpulockd.client.nesting import Held, Owner, owner_here

AtEnd = functools.partial[None]
"""What one `with` statement calls at its end."""

Exit = Callable[[Any, type[BaseException] | None, BaseException | None, TracebackType | None], None]


_scope_kind: Callable[[], anyio.CancelScope] | None = None


def new_scope() -> anyio.CancelScope:
    """The cancel scope of a body. anyio asks at each one which event loop runs; here it is asyncio's always."""
    global _scope_kind
    if _scope_kind is None:
        asyncio.get_running_loop()
        _scope_kind = type(anyio.CancelScope())
    return _scope_kind()


class Use:
    """One entry into a `gpu_lock` block: the lease it is in, its own or one joined, and the scope of its body."""

    __slots__ = ("held", "lease", "owner", "scope", "watch")

    def __init__(self, held: Held, lease: Lease | BlockingLease, owner: Owner) -> None:
        self.held = held
        self.lease = lease
        self.owner = owner
        self.scope: anyio.CancelScope | None = None
        self.watch: weakref.ref[AtEnd] | None = None


class Uses:
    """The blocks of one `gpu_lock` that are entered, those of each task or thread innermost last."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], list[Use]] = {}
        self._fetched: dict[int, weakref.ref[AtEnd]] = {}

    def add(self, use: Use) -> None:
        """A block is entered."""
        self._of.setdefault(use.owner.key, []).append(use)

    def has(self, lease: object) -> bool:
        """Whether a block with this lease is entered."""
        return any(use.lease is lease for uses in tuple(self._of.values()) for use in uses)

    def pop(self) -> tuple[Use, bool]:
        """The use that ends here, and whether this task or thread entered it.

        :raises RuntimeError: if all have ended
        """
        me = owner_here()
        uses = self._of.get(me.key)
        if not uses or not uses[-1].owner.same(me):
            strangers = [key for key, uses in self._of.items() if uses]
            if not strangers:
                raise RuntimeError("this gpu_lock block has been left already")
            return self._take(strangers[-1]), False
        return self._take(me.key), True

    def begin(self, use: Use) -> None:
        """This thread enters a block: the end that its `with` statement has fetched just now answers for it."""
        fetched = self._fetched.pop(threading.get_ident(), None)
        at_end = fetched() if fetched is not None else None
        if at_end is not None and isinstance(use.lease, BlockingLease):
            use.watch = weakref.ref(at_end, lambda _: self._torn(use))

    def _torn(self, use: Use) -> None:
        """A block is left, and its end was not reached, or not finished."""
        use.watch = None
        if use.lease._session.pid == os.getpid():
            uses = self._of.get(use.owner.key)
            if uses and use in uses:
                uses.remove(use)
            give_back_later(use)

    def fetched(self, at_end: AtEnd) -> None:
        """This thread's `with` statement has fetched its end."""
        self._fetched[threading.get_ident()] = weakref.ref(at_end)

    def _take(self, key: tuple[str, int]) -> Use:
        uses = self._of[key]
        use = uses.pop()
        if not uses:
            del self._of[key]
        return use


class BlockEnd:
    """The `__exit__` of a class: fetched from an object, it is one block's own end."""

    def __init__(self, leave: Exit) -> None:
        self._leave = leave

    @classmethod
    def watch_over(cls, kind: type) -> None:
        """Let the blocks of a class be ended whatever tears their ends; its objects have their `Uses` as `_uses`."""
        if "__exit__" in vars(kind):
            kind.__exit__ = cls(vars(kind)["__exit__"])  # type: ignore[attr-defined]

    def __get__(self, lock: Any, kind: type) -> Callable[..., None]:
        if lock is None:
            return self._leave
        # No object of ours: its method's frame, and so the traceback of what tears the end, would keep it. And without
        # `__del__`: that would swallow what a signal handler raises.
        at_end = functools.partial(self._leave, lock)
        lock._uses.fetched(at_end)
        return at_end


def part(use: Use) -> None:
    """Leave a thread's body; the last one to leave gives the lease back. Interrupted on the way, the portal does it."""
    held, lease = use.held, use.lease
    assert isinstance(lease, BlockingLease)
    try:
        if held.part(use):
            nesting.leave(held)
            if lease._session.pid == os.getpid():
                lease._portal.call(lease._lease._close)
    except BaseException:
        give_back_later(use)
        raise
    use.watch = None


def give_back_later(use: Use) -> None:
    """Do what is left of the end of a thread's block, without waiting; nothing, if all is done."""
    held, lease = use.held, use.lease
    if not isinstance(lease, BlockingLease) or not held.part(use):
        return
    nesting.leave(held)
    if lease._session.pid == os.getpid() and not lease._lease._ended:
        lease._portal.later(lease._lease._close)
