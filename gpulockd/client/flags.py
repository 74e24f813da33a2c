"""A flag that one side sets from any thread and the other side reads, or awaits in any event loop."""

from __future__ import annotations

import asyncio
import threading


class Flag:
    """Set once, for ever. `is_set` from anywhere, `wait` from any event loop, `wait_blocking` from any thread."""

    __slots__ = ("_event", "_mutex", "_waiting")

    def __init__(self) -> None:
        self._event: threading.Event | None = None
        self._mutex = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] | None = []

    def __repr__(self) -> str:
        return f"<Flag {'set' if self.is_set() else 'not set'}>"

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._waiting is None

    def set(self) -> None:
        """Set it and wake all that wait; once set it stays."""
        with self._mutex:
            waiting, self._waiting = self._waiting or [], None
            event = self._event
        if event is not None:
            event.set()
        for loop, future in waiting:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # that loop is closed, and nobody waits in it any more
                continue

    async def wait(self) -> None:
        """Return once it is set."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._mutex:
            if self._waiting is None:
                return
            self._waiting.append((loop, future))
        try:
            await future
        finally:
            with self._mutex:
                if self._waiting is not None:
                    self._waiting.remove((loop, future))

    def wait_blocking(self, timeout_s: float | None = None) -> bool:
        """Block this thread until it is set, or for `timeout_s` (in seconds). Returns whether it is set."""
        with self._mutex:
            if self._waiting is None:
                return True
            if self._event is None:
                self._event = threading.Event()
        return self._event.wait(timeout_s)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
