"""Going through work item by item while a lease is held: its progress is told, and a request to stop is heard.

Its law: telling never delays the work. One message is under way at most, and nobody waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Generic, TypeVar

from gpulockd.client.blocking import portal
from gpulockd.errors import GpuLockError

if TYPE_CHECKING:  # names of types only
    from gpulockd.client.lease import LeaseFacts

T = TypeVar("T")
Says = Callable[[float | None, str], Awaitable[None]]

log = logging.getLogger("gpulockd")

TOLD_EVERY_S = 1.0
"""How often progress is told at most (in seconds)."""


class Tracked(Generic[T]):
    """The items of a loop. `done` counts those that are through, `stopped` says that the loop ended before its time."""

    def __init__(
        self,
        lease: LeaseFacts,
        says: Says,
        items: Iterable[T],
        *,
        total: int | None,
        start: int,
        on_stop: Callable[[], object] | None,
    ) -> None:
        """As `Lease.track`; `says` tells the progress."""
        self._lease = lease
        self._says = says
        self._items = items
        self._on_stop = on_stop
        self._saying = False
        self._told_at_s = float("-inf")
        length = _length(items) if total is None else None
        self.total = total if length is None else start + length
        self.done = start
        self.stopped = False

    def __repr__(self) -> str:
        return f"<Tracked {self._step()}{', stopped' if self.stopped else ''}>"

    def __iter__(self) -> Iterator[T]:
        items = iter(self._items)
        while not self._must_end():
            try:
                item = next(items)
            except StopIteration:
                return
            yield item
            self.done += 1
            self._tell()

    def _must_end(self) -> bool:
        """Whether the loop ends before its next item.

        :raises LeaseLost: if the GPU is not ours any more
        """
        if self._lease.lost.is_set():
            raise self._lease._loss()
        if self.done == self.total or not self._lease.stopping.is_set():
            return False
        self.stopped = True
        if self._on_stop is not None:
            self._on_stop()
        return True

    def _step(self) -> str:
        return f"step {self.done}" if self.total is None else f"step {self.done} of {self.total}"

    def _tell(self) -> None:
        now_s = time.monotonic()
        due = now_s - self._told_at_s >= TOLD_EVERY_S or self.done == self.total
        if due and not self._saying:
            self._saying, self._told_at_s = True, now_s
            portal().later(self._say, min(100.0, 100 * self.done / self.total) if self.total else None, self._step())

    async def _say(self, percent: float | None, message: str) -> None:
        try:
            await self._says(percent, message)
        except GpuLockError as untold:  # a loss is seen at the next item
            log.debug("gpulockd: %s", untold)
        finally:
            self._saying = False


def _length(items: Iterable[T]) -> int | None:
    """How many there are; None for those that cannot say, such as a loader of a stream."""
    try:
        return len(items) if isinstance(items, Sized) else None
    except TypeError:
        return None
