"""Watching whether the client of a request is still there.

Its law: the body has been read before anybody watches, so the only message that can still come is the goodbye.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import Receive


class Watch:
    """While its block runs, `on_gone` is called once if the client hangs up."""

    def __init__(self, receive: Receive, on_gone: Callable[[], object]) -> None:
        self._receive = receive
        self._on_gone = on_gone
        self._task: asyncio.Task[None] | None = None
        self.gone = False

    def __repr__(self) -> str:
        return f"<Watch {'gone' if self.gone else 'there'}>"

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = self._task
        assert task is not None
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (trouble := task.exception()) is not None:
            raise trouble

    async def _look(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self.gone = True
        self._on_gone()
