"""Pulses: each service beats its own whenever it has ended a cycle, also one that met expected trouble."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import anyio
import msgspec

T = TypeVar("T")


class Pulse(msgspec.Struct, kw_only=True):
    """One service: it must beat at least every `within_s`; `at_s` is its last beat (both in seconds, loop's clock)."""

    name: str
    within_s: float
    at_s: float

    def beat(self) -> None:
        """Say that a cycle has ended."""
        self.at_s = anyio.current_time()

    async def rest(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Wait for what may not come for hours, and beat meanwhile.

        :param wait: what to wait for; it is cancelled and begun again, and must lose nothing by that
        """
        while True:
            with anyio.move_on_after(self.within_s / 3):
                return await wait()
            self.beat()


class Pulses:
    """The pulses of all services that have one."""

    def __init__(self) -> None:
        self._all: list[Pulse] = []

    def add(self, name: str, *, within_s: float) -> Pulse:
        """Return the pulse of a new service, which counts as just beaten.

        :param within_s: the longest that one of its cycles may take, its waits included (in seconds)
        """
        pulse = Pulse(name=name, within_s=within_s, at_s=anyio.current_time())
        self._all.append(pulse)
        return pulse

    def overdue(self) -> tuple[str, ...]:
        """Return the names of the services that are late now."""
        return overdue(self._all, anyio.current_time())


def overdue(pulses: Collection[Pulse], now_s: float) -> tuple[str, ...]:
    """Return the names of the pulses that should have beaten by `now_s` (in seconds) and have not."""
    return tuple(sorted(pulse.name for pulse in pulses if now_s - pulse.at_s > pulse.within_s))


def healthy(pulses: Collection[Pulse], now_s: float) -> bool:
    """Return whether every pulse has beaten in its time."""
    return not overdue(pulses, now_s)
