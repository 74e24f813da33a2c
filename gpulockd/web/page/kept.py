"""What was made for one reader of the page serves all of them for a moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from gpulockd.clock import boottime_s

T = TypeVar("T")


class Kept:
    """The last things made, by name. `began_s` is when this was made (`boottime_s`)."""

    def __init__(self) -> None:
        self.began_s = boottime_s()
        self._made: dict[str, tuple[float, object, Any]] = {}
        self._making: dict[str, anyio.Lock] = {}

    def __repr__(self) -> str:
        return f"<Kept {', '.join(self._made)}>"

    async def get(self, name: str, age_s: float, make: Callable[[], Awaitable[T]], *, mark: object = None) -> T:
        """Return what `make` gave last, at most `age_s` ago (in seconds), else what it gives now.

        What it raises is raised, and nothing is kept.

        :param mark: what was made under another mark is not given
        """
        async with self._making.setdefault(name, anyio.Lock()):
            found = self._made.get(name)
            if found is not None and found[1] == mark and anyio.current_time() - found[0] < age_s:
                kept: T = found[2]
                return kept
            began_s = anyio.current_time()
            made = await make()
            self._made[name] = (began_s, mark, made)
            return made
