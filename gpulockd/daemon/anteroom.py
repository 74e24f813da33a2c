"""Where leases wait before the fence until those that are inside are over. No user fills it for the others."""

from __future__ import annotations

from collections import Counter

from gpulockd.daemon.callers import Caller
from gpulockd.daemon.fence import Lease
from gpulockd.daemon.sharing import may_have

MOST_WAITING = 4096
CROWDED = {"error": "too many leases of your user wait here", "hint": "start fewer at a time; ask again later"}


class Anteroom:
    """The leases that wait, each with who asked."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        """:param most: how many may wait in all"""
        self._most = most
        self._waiting: dict[str, tuple[Lease, Caller]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<Anteroom {len(self)} waiting>"

    @property
    def leases(self) -> list[Lease]:
        """Those that wait."""
        return [lease for lease, _ in self._waiting.values()]

    def get(self, id: str) -> tuple[Lease, Caller] | None:
        """Who waits under this id, and who asked."""
        return self._waiting.get(id)

    def put(self, lease: Lease, caller: Caller) -> bool:
        """Let a lease wait; False if its user has more here than what is left for all others."""
        taken = Counter(other.uid for id, (_, other) in self._waiting.items() if id != lease.id)
        if not may_have(caller.uid, taken, self._most):
            return False
        self._waiting[lease.id] = lease, caller
        return True

    def drop(self, id: str) -> None:
        """It waits no longer."""
        self._waiting.pop(id, None)

    def gone(self, caller: Caller) -> None:
        """Nobody would hear an answer on this connection any more."""
        for id, (_, other) in list(self._waiting.items()):
            if other is caller:
                del self._waiting[id]

    def latest_first(self) -> list[tuple[Lease, Caller]]:
        """Those that wait, the latest grant first."""
        return sorted(self._waiting.values(), key=lambda waits: -waits[0].token)
