"""An answer that stands until something happens in the pool, and a moment at most: a crowd that asks costs one look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")

STANDS_S = 0.1
"""How long an answer stands at most (in seconds)."""

MOST_KEPT = 64


class Standing(Generic[T]):
    """The last answer to each question.

    :param happened: a number that changes when anything does
    """

    def __init__(self, happened: Callable[[], int]) -> None:
        self._happened = happened
        self._answers: dict[str, tuple[int, float, T]] = {}
        self._looking = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Standing {len(self._answers)} answers>"

    async def answer(self, question: str, look: Callable[[], Awaitable[T]]) -> T:
        """Return what stands, else what `look` finds now; what that raises is raised for one who asks."""
        standing = self._of(question)
        if standing is None:
            async with self._looking:
                standing = self._of(question)  # somebody may have looked meanwhile
                if standing is None:
                    happened, at_s = self._happened(), monotonic()
                    standing = (await look(),)
                    if len(self._answers) >= MOST_KEPT:
                        self._answers.clear()
                    self._answers[question] = happened, at_s, standing[0]
        return standing[0]

    def _of(self, question: str) -> tuple[T] | None:
        happened, at_s, found = self._answers.get(question, (0, float("-inf"), None))
        if found is None or happened != self._happened() or monotonic() - at_s > STANDS_S:
            return None
        return (found,)
