"""One look for all who ask at the same time: a crowd of dashboards costs the store no more than one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Together(Generic[T]):
    """Calls `work` for all who wait; each gets what was begun after he had asked, so no answer is older than that.

    :param work: looks; what it raises is raised for one caller, and the next tries again
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._lock = anyio.Lock()
        self._begun = 0
        self._found: tuple[int, T] | None = None

    async def __call__(self) -> T:
        """Return what `work` finds."""
        seen = self._begun
        async with self._lock:
            if self._found is not None and self._found[0] > seen:
                return self._found[1]
            self._begun += 1
            number = self._begun
            found = await self._work()
            self._found = number, found
            return found
