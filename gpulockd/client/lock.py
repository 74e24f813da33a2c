"""`gpu_lock`: one object that is an async and a sync context manager and a decorator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import anyio

from gpulockd.client import dropping, nesting, wishes
from gpulockd.client.blocking import portal
from gpulockd.client.cleaning import Cleanup, check_cleanup
from gpulockd.client.decorating import decorated
from gpulockd.client.getting import Getting
from gpulockd.client.lease import BlockingLease, Lease, LeaseFacts, for_tasks
from gpulockd.client.nesting import Held, owner_here
from gpulockd.client.spelling import suggests
from gpulockd.client.taking import Blocking
from gpulockd.client.using import BlockEnd, Use, Uses, new_scope, part
from gpulockd.client.whoami import program
from gpulockd.client.wishes import Duration, Nested
from gpulockd.errors import ConfigError, GpuLockTimeout
from gpulockd.units import parse_duration_s

F = TypeVar("F", bound=Callable[..., Any])


class gpu_lock:
    """The right to use one or more GPUs for the time of a block or a function.

    :param lock_key: the key of a lock, such as "gpu_lock:0"; None means any one GPU
    :param timeout: alias of `lock_timeout`
    :param poll_interval: how often to look while notifications are away (seconds or "250ms")
    :param max_wait_time: longest wait in the queue (seconds or "5m"); 0 means not at all
    :param event_driven: accepted for YiVideo's sake; waiting is always event-driven, with polling as a fallback
    :param fallback_timeout: accepted for YiVideo's sake
    :param count: how many GPUs, all or none
    :param gpus: these GPUs, by index
    :param memory: a memory budget on a shared card ("8GiB", or MiB); with `exclusive=True` a whole card that has it
    :param exclusive: whether the whole card is meant; default: yes, unless `memory` is given
    :param priority: -100 to 100, higher first; one point is worth `queue.priority_step` of waiting
    :param task: what the holder is called; default: the function's or program's name
    :param task_id: which run of the task this is; default `<task>#<token>`
    :param lock_timeout: the lease's own end after its last heartbeat (seconds or "1h"); automatic: >= 3 session.ttl
    :param warning: age of the hold at which it is reported (seconds or "5m")
    :param soft_timeout: age of the hold at which it is asked to stop
    :param hard_timeout: age of the hold at which it is ended
    :param heartbeat: "automatic" while the process lives, or "manual": only `lease.progress` counts
    :param nested: what to do where a lease of the surrounding task stands in the way: "error", "join" or "wait"
    :param pool: the pool's name, if it is not the local one
    :param cleanup: frees what the body leaves (`torch.cuda.empty_cache`, `gc.collect`): called once, in a thread, after
        the lease was given back, so it delays no hand-off; its errors are logged; no coroutine function
    :raises ImpossibleRequest: if the arguments name nothing that could be granted
    :raises ConfigError: if a duration cannot be read
    """

    turn: wishes.Turn | None = None

    @suggests
    def __init__(
        self,
        lock_key: str | None = None,
        timeout: Duration | None = None,
        poll_interval: Duration | None = None,
        max_wait_time: Duration | None = None,
        event_driven: bool | None = None,
        fallback_timeout: Duration | None = None,
        *,
        count: int | None = None,
        gpus: Iterable[int | str] | None = None,
        memory: str | int | None = None,
        exclusive: bool | None = None,
        priority: int = 0,
        task: str | None = None,
        task_id: str | None = None,
        lock_timeout: Duration | None = None,
        warning: Duration | None = None,
        soft_timeout: Duration | None = None,
        hard_timeout: Duration | None = None,
        heartbeat: Literal["automatic", "manual"] = "automatic",
        nested: Nested = "error",
        pool: str | None = None,
        cleanup: Cleanup | None = None,
    ) -> None:
        if callable(lock_key):
            raise TypeError("write @gpu_lock() with parentheses")
        if nested not in ("error", "join", "wait"):
            raise ConfigError(f"nested={nested!r}: say 'error', 'join' or 'wait'")
        lock_timeout = timeout if lock_timeout is None else lock_timeout
        self.wants = wishes.wants_of(lock_key, count, gpus, memory, exclusive)
        self.job = wishes.job_of(task or program(), task_id, warning, soft_timeout, hard_timeout, heartbeat)
        self._names_task = task is not None
        self.priority = wishes.check_priority(priority)
        self.max_wait_time = (
            max_wait_time if max_wait_time is None else parse_duration_s(max_wait_time, "max_wait_time")
        )
        self.poll_interval = (
            poll_interval if poll_interval is None else parse_duration_s(poll_interval, "poll_interval")
        )
        self.lock_timeout = lock_timeout if lock_timeout is None else parse_duration_s(lock_timeout, "lock_timeout")
        self.nested, self.pool = nested, pool
        check_cleanup(cleanup)
        self.cleanup = cleanup
        self._uses = Uses()

    def __init_subclass__(cls) -> None:
        BlockEnd.watch_over(cls)

    def __repr__(self) -> str:
        return f"<gpu_lock {self.wants}>"

    # Without a block.

    @overload
    async def acquire(self, blocking: Literal[True] = True) -> Lease: ...
    @overload
    async def acquire(self, blocking: bool) -> Lease | None: ...

    async def acquire(self, blocking: bool = True) -> Lease | None:
        """Wait for the lease and return it; end it with `await lease.release()`.

        :param blocking: False: None at once if it is not free
        :raises GpuLockTimeout: if it was not free within `max_wait_time`
        :raises WouldDeadlock: if this task holds what would have to end first
        :raises StoreUnavailable: if Redis was away when the wait limit was over
        """
        try:
            lease = await Getting(self).lease(None if blocking else 0.0)
        except GpuLockTimeout:
            if blocking:
                raise
            return None
        self._hold(lease)
        return lease

    def acquire_blocking(self, blocking: bool = True) -> BlockingLease | None:
        """As `acquire`, for a thread: end it with `lease.release()`."""
        with Blocking(self, waits=blocking) as taking:
            try:
                lease = taking.lease(None if blocking else 0.0)
            except GpuLockTimeout:
                if blocking:
                    raise
                return None
            self._hold(lease)
            taking.keep()
            return lease

    # async with

    async def __aenter__(self) -> Lease:
        while True:
            # Made before the wait: what comes after it is time in which nobody uses the gpu.
            scope = new_scope()
            use = self._join(for_tasks)
            joined = use is not None
            if use is None:
                lease = await Getting(self).lease(None)
                use = self._first(lease)
            assert isinstance(use.lease, Lease)
            use.scope = scope
            scope.__enter__()
            if use.lease._line.loop is asyncio.get_running_loop():
                use.held.scopes.append(use.scope)
            self._uses.add(use)
            # The last look at the clock: this process may have been stopped since the ledger said yes.
            if joined or use.lease.stands:
                return use.lease
            await self._leave(use)

    async def _leave(self, use: Use) -> None:
        """Undo an entry that came too late."""
        self._uses.pop()
        assert use.scope is not None
        use.scope.__exit__(None, None, None)
        nesting.leave(use.held)
        assert isinstance(use.lease, Lease)
        await use.lease._undo()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        use, mine = self._uses.pop()
        lease, swallowed = use.lease, False
        assert isinstance(lease, Lease)
        assert use.scope is not None
        if use.scope in use.held.scopes:
            use.held.scopes.remove(use.scope)
        if mine:
            # Only a loss cancels this scope, so what it swallows is always told as `LeaseLost`.
            swallowed = use.scope.__exit__(kind, error, trace)
        if use.held.part(use):
            nesting.leave(use.held)
            if kind is None:
                await lease._close()
            else:
                with anyio.move_on_after(lease._session.times.rpc_deadline, shield=True):
                    await lease._close()
        if lease.lost.is_set() and (kind is None or swallowed):
            raise lease._loss() from None
        if not mine and kind is None:
            raise RuntimeError("leave an 'async with gpu_lock()' block in the task that entered it (it was released)")

    # with

    def __enter__(self) -> BlockingLease:
        use = self._join(_for_threads)
        if use is None:
            with Blocking(self) as taking:
                lease = taking.lease(None)
                use = self._first(lease)
                self._uses.add(use)
                taking.keep()
        else:
            self._uses.add(use)
        assert isinstance(use.lease, BlockingLease)
        return use.lease

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Another thread may leave what one entered, as FastAPI's sync dependencies do.
        use, _ = self._uses.pop()
        part(use)
        if use.lease.lost.is_set() and kind is None:
            raise use.lease._loss()

    # Nesting.

    def _hold(self, lease: LeaseFacts) -> None:
        """Begin a lease without a block, which only its own release ends."""
        dropping.watch(for_tasks(lease))
        held = Held(lease, owner_here(), self.wants)
        held.join(nesting.ACQUIRED)
        nesting.enter(held)

    def _first(self, lease: Lease | BlockingLease) -> Use:
        """Begin a lease of its own."""
        me = owner_here()
        use = Use(Held(lease, me, self.wants), lease, me)
        self._uses.begin(use)
        use.held.join(use)
        nesting.enter(use.held)
        return use

    def _join(self, form: Callable[[LeaseFacts], Lease | BlockingLease]) -> Use | None:
        """Join the lease of this very task or thread, or of the parent where `nested="join"` says so."""
        held = nesting.joinable(self.wants, self.pool)
        if held is None and self.nested == "join":
            held = nesting.parent_lease(self.wants, self.pool)
        if held is None:
            return None
        use = Use(held, form(held.lease), owner_here())
        self._uses.begin(use)
        if not held.join(use):
            return None
        for_tasks(held.lease)._clean_up_with(self.cleanup)
        return use

    # @gpu_lock()

    def __call__(self, func: F) -> F:
        """Hold the lease while `func` runs: a function or method, `def` or `async def`.

        :raises TypeError: for generators and classes
        """
        lock = self if self._names_task else self._named(getattr(func, "__name__", "task"))
        return decorated(func, lock)

    def _named(self, task: str) -> gpu_lock:
        copy = gpu_lock.__new__(gpu_lock)
        copy.__dict__ |= self.__dict__
        copy._uses, copy._names_task = Uses(), True
        copy.job = wishes.renamed(self.job, task)
        return copy


BlockEnd.watch_over(gpu_lock)


def _for_threads(lease: LeaseFacts) -> BlockingLease:
    if isinstance(lease, Lease):
        return BlockingLease(portal(), lease)
    assert isinstance(lease, BlockingLease)
    return lease


def current_lease() -> LeaseFacts | None:
    """The innermost lease that this task or thread holds, or was started inside of; None if there is none."""
    helds = nesting.holding()
    return helds[-1].lease if helds else None
