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

    async def get(
        self,
        name: str,
        age_s: float,
        make: Callable[[], Awaitable[T]],
        *,
        mark: Callable[[], object] = lambda: None,
        pause_s: float = 0.0,
    ) -> T:
        """Return what `make` gave last, at most `age_s` ago (in seconds), else what it gives now.

        What it raises is raised, and nothing is kept.

        :param mark: what was made under another mark is not given
        :param pause_s: how long it rests after it was made (in seconds), however often the mark changes: who asks
            meanwhile waits for the same one
        """
        async with self._making.setdefault(name, anyio.Lock()):
            found = self._made.get(name)
            if found is not None:
                old_s = anyio.current_time() - found[0]
                if found[1] == mark() and old_s < age_s:
                    kept: T = found[2]
                    return kept
                await anyio.sleep(max(0.0, pause_s - old_s))
            began_s, marked = anyio.current_time(), mark()
            made = await make()
            self._made[name] = (began_s, marked, made)
            return made
