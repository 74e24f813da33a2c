"""A lease: the right to use gpus until it ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from gpulockd.client import phrases
from gpulockd.client.cleaning import Cleaning, Cleanup
from gpulockd.client.losses import in_words
from gpulockd.client.process import line_of
from gpulockd.client.tracking import Tracked
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError, LeaseLost
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.address import without_secret
from gpulockd.units import format_duration

if TYPE_CHECKING:  # names of types only
    from gpulockd.client.blocking import Portal
    from gpulockd.client.flags import Flag
    from gpulockd.client.line import Line
    from gpulockd.client.session import Session
    from gpulockd.client.table import Entry
    from gpulockd.model import Gpu

T = TypeVar("T")

KEPT_SOON_S = 0.1
"""How long a keepalive that was asked for may take before the next try (in seconds)."""


class LeaseFacts:
    """What every lease tells: its gpus, its token, and whether it was lost. Other processes' copies change nothing."""

    def __init__(self, session: Session, entry: Entry) -> None:
        self._session = session
        self._entry = entry
        self._ended = False

    def __repr__(self) -> str:
        where = ", ".join(gpu.key for gpu in self.gpus)
        if not self.living:
            return f"<{type(self).__name__} {where} token={self.token} ended>"
        state = "LOST" if self.lost.is_set() else f"held {format_duration(self.held_s)}"
        return f"<{type(self).__name__} {where} token={self.token} {state}>"

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The gpus, in order of index."""
        return self._entry.gpus

    @property
    def gpu(self) -> Gpu:
        """The first gpu."""
        return self._entry.gpus[0]

    @property
    def token(self) -> int:
        """The fencing token: grows with every grant of the pool, over restarts and data loss too."""
        return self._entry.token

    @property
    def id(self) -> str:
        """The id of the ticket and its lease."""
        return self._entry.id

    @property
    def pool(self) -> str:
        """The pool's name."""
        return self._session.pool

    @property
    def task(self) -> str:
        """What the holder is called."""
        return self._entry.ask.job.task

    @property
    def task_id(self) -> str:
        """Which run of the task this is: as given, else `<task>#<token>`."""
        return self._entry.ask.job.task_id or f"{self.task}#{self.token}"

    @property
    def waited_s(self) -> float:
        """How long the ticket waited (in seconds of the ledger clock)."""
        return self._entry.waited_s

    @property
    def held_s(self) -> float:
        """How long it has been held (in seconds)."""
        return boottime_s() - self._entry.granted_at

    @property
    def lost(self) -> Flag:
        """Set when the lease has ended without its holder: stop using the gpu."""
        return self._entry.lost

    @property
    def stopping(self) -> Flag:
        """Set when the holder is asked to stop: save your work and leave."""
        return self._entry.stopping

    @property
    def lost_reason(self) -> str:
        """Why it was lost; empty if it was not."""
        return self._entry.lost_reason

    @property
    def living(self) -> bool:
        """Whether this process still holds it. In a forked child it never does."""
        return not self._ended and not self.lost.is_set() and self._session.pid == os.getpid()

    @property
    def stands(self) -> bool:
        """Whether its body may begin or go on now, by this process's own clock."""
        return not self._ended and self._session.stands(self._entry)

    @property
    def env(self) -> dict[str, str]:
        """The environment for a program that shall run inside this lease. A password of the store is left out."""
        uuids = [gpu.uuid or str(gpu.index) for gpu in self.gpus if gpu.uuid or gpu.index is not None]
        env = {"GPULOCKD_LEASE": self.id, "GPULOCKD_TOKEN": str(self.token), "GPULOCKD_POOL": self.pool}
        if uuids:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
        if self._session.socket:
            env["GPULOCKD_SOCKET"] = self._session.socket
        elif without_secret(self._session.url) == self._session.url:
            env["GPULOCKD_REDIS_URL"] = self._session.url
        return env

    def track(
        self,
        items: Iterable[T],
        total: int | None = None,
        *,
        start: int = 0,
        on_stop: Callable[[], object] | None = None,
    ) -> Tracked[T]:
        """Go through `items`: tells the progress once a second, and ends early when the holder is asked to stop.

        :param total: how many there will have been at the end; default: `start` and the items' own length
        :param start: how many were done before, by an earlier run
        :param on_stop: called once before the loop ends early: save your work in it, or after the loop
        :raises LeaseLost: from the loop, before its next item, if the lease was lost
        """
        return Tracked(self, for_tasks(self).progress, items, total=total, start=start, on_stop=on_stop)

    def _loss(self) -> LeaseLost:
        where = ", ".join(str(gpu) for gpu in self.gpus)
        why = in_words(self.lost_reason)
        text = f"the lease on {where} (token {self.token}) was lost: {why}; stop using it and ask again"
        return LeaseLost(text, lease=self.id, token=self.token, reason=self.lost_reason)


class Lease(LeaseFacts):
    """A lease held by an event loop's task."""

    def __init__(self, line: Line, entry: Entry) -> None:
        super().__init__(line.session, entry)
        self._line = line
        self._cleanups: tuple[Cleanup, ...] = ()
        line.belief.begin()

    def _clean_up_with(self, cleanup: Cleanup | None) -> None:
        """Call `cleanup` after this lease has been given back: once, however many bodies say so."""
        if cleanup is not None and cleanup not in self._cleanups:
            self._cleanups = (*self._cleanups, cleanup)

    async def progress(self, percent: float | None = None, message: str = "") -> None:
        """Say how far the work is: the task's heartbeat.

        :param percent: 0 to 100, None if unknown
        :param message: a few words for people
        :raises LeaseLost: if the lease has ended
        :raises StoreUnavailable: if Redis did not answer; the lease is not affected
        """
        call = _progress_call(self, percent, message)
        if self._session.pid != os.getpid():
            return
        line = await _line_here(self._line)
        answer, _ = await line.ask(call)
        _check_noted(self, answer)

    async def release(self) -> None:
        """Give the lease back, once; later calls do nothing. In a forked child it does nothing.

        :raises LeaseLost: if it had been lost before
        """
        await self._close()
        if self.lost.is_set():
            raise self._loss()

    async def _close(self) -> None:
        """The body is over: end the lease, and clean up behind it whatever became of the end."""
        try:
            await self._end()
        finally:
            cleanups, self._cleanups = self._cleanups, ()
            if cleanups and self._session.pid == os.getpid():
                # The end was sent, or is about to be by a task that was made before this.
                loop = asyncio.get_running_loop()
                loop.call_soon(Cleaning(cleanups, repr(self)).begin, loop)

    async def _end(self) -> None:
        if self._ended or self._session.pid != os.getpid():
            return
        self._ended, self._entry.watch = True, None
        line = self._line if not self._line.loop.is_closed() else await _line_here(self._line)
        await line.end(self._entry, "released")
        if not self.lost.is_set():
            phrases.released(self.task)

    async def _undo(self) -> None:
        """It came too late to be entered: give it back. Where only a keepalive proves the next one, wait for that."""
        await self._end()
        if not self._session.is_kept:
            await asyncio.sleep(KEPT_SOON_S)


class BlockingLease(LeaseFacts):
    """A lease held by a thread: the same facts, and plain functions."""

    def __init__(self, portal: Portal, lease: Lease) -> None:
        super().__init__(lease._session, lease._entry)
        self._portal = portal
        self._lease = lease

    @property
    def living(self) -> bool:
        """Whether this process still holds it. In a forked child it never does."""
        return self._lease.living

    def progress(self, percent: float | None = None, message: str = "") -> None:
        """Say how far the work is: the task's heartbeat.

        :param percent: 0 to 100, None if unknown
        :param message: a few words for people
        :raises LeaseLost: if the lease has ended
        :raises StoreUnavailable: if Redis did not answer; the lease is not affected
        """
        if self._session.pid == os.getpid():
            self._portal.call(self._lease.progress, percent, message)

    def release(self) -> None:
        """Give the lease back, once; later calls do nothing. In a forked child it does nothing.

        :raises LeaseLost: if it had been lost before
        """
        if self._session.pid == os.getpid():
            self._portal.call(self._lease.release)


def for_tasks(lease: LeaseFacts) -> Lease:
    """The lease as tasks use it: a thread's block may surround an event loop."""
    return lease._lease if isinstance(lease, BlockingLease) else lease  # type: ignore[return-value] # there is no third


async def _line_here(line: Line) -> Line:
    """The line of the running loop: a lease may be used from another loop of its process."""
    return line if line.loop is asyncio.get_running_loop() else await line_of(line.session)


def _progress_call(lease: LeaseFacts, percent: float | None, message: str) -> verbs.Call[object]:
    if percent is not None and (not isinstance(percent, int | float) or not 0 <= percent <= 100):
        raise ValueError(f"percent={percent!r}: say a number from 0 to 100")
    if lease.lost.is_set():
        raise lease._loss()
    if lease._ended or lease._entry.state == "ending":
        raise GpuLockError("this lease has been released: report progress inside its block")
    session, entry = lease._session, lease._entry
    return verbs.progress(  # type: ignore[return-value] # the answer is checked by `_check_noted`
        session.keys,
        session=entry.session,
        id=entry.id,
        token=entry.token,
        percent=percent,
        note=str(message)[:500],
    )


def _check_noted(lease: LeaseFacts, answer: object) -> None:
    if isinstance(answer, a.Noted | a.NoSession | a.Unopened):
        return
    if isinstance(answer, a.Gone):
        lease._entry.lose(answer.reason)
    elif isinstance(answer, a.Stale):
        lease._entry.lose("overruled")
    else:
        raise GpuLockError(f"the ledger answered {answer!r} to progress")
    raise lease._loss()
