"""What the audit says of deeds that were refused: a line each, but not so many that they push the others out."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import structlog

from gpulockd.errors import ConfigConflict, ConfigError, GpuLockError, Unvalidated
from gpulockd.ledger import revisions
from gpulockd.ledger.revisions import Ask, UnknownRevision

MOST_A_MINUTE = 30
"""Whoever asks without a token can make no more lines than these."""

BY_ITSELF = frozenset({"auto_rollback", "rollout"})
"""Origins of what a daemon tries."""

MINUTE_S = 60.0
LONGEST = 500

_log = structlog.get_logger(__name__)


class Refusals:
    """Writes them for one daemon."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._written: deque[tuple[float, tuple[str, str, str]]] = deque()
        self._held_back = 0

    def __repr__(self) -> str:
        return f"<Refusals {len(self._written)} lately>"

    @asynccontextmanager
    async def of(self, author: str, origin: str, *, quiet: bool = False) -> AsyncIterator[None]:
        """Write down what is refused in here, if somebody wanted it: not what the daemon tries by itself."""
        try:
            yield
        except (ConfigError, Unvalidated, ConfigConflict, UnknownRevision) as refused:
            if not quiet and origin not in BY_ITSELF:
                await self.note(text=refused.message, author=author, origin=origin)
            raise

    async def note(self, *, text: str, author: str, origin: str) -> None:
        """Write a line, unless the same one was written in the last minute, or too many were. It raises nothing."""
        now_s, line = anyio.current_time(), (text[:LONGEST], author, origin)
        while self._written and self._written[0][0] <= now_s - MINUTE_S:
            self._written.popleft()
        if len(self._written) >= MOST_A_MINUTE or any(line == other for _, other in self._written):
            self._held_back += 1
            return
        self._written.append((now_s, line))
        more = f" ({self._held_back} more such lines were held back)" if self._held_back else ""
        self._held_back = 0
        try:
            await revisions.audit(self._ask, text=line[0] + more, author=author, origin=origin, what="refused")
        except GpuLockError as trouble:
            _log.warning("config.unaudited", message=f"a refused change is not in the audit: {trouble.message}")
