"""Where leases wait before the fence until those that are inside are over. No user fills it for the others.

Two may wait under one id: only the ledger knows whose it is.
"""

from __future__ import annotations

from collections import Counter

from gpulockd.daemon.callers import Caller, Owner
from gpulockd.daemon.fence import Lease
from gpulockd.daemon.sharing import may_have

MOST_WAITING = 4096
CROWDED = {"error": "too many leases of your user wait here", "hint": "start fewer at a time; ask again later"}


class Anteroom:
    """The leases that wait, each with who asked."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        """:param most: how many may wait in all"""
        self._most = most
        self._waiting: dict[tuple[str, Owner], tuple[Lease, Caller]] = {}
        self._thrown_out: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __repr__(self) -> str:
        return f"<Anteroom {len(self)} waiting>"

    @property
    def leases(self) -> list[Lease]:
        """Those that wait."""
        return [lease for lease, _ in self._waiting.values()]

    def put(self, lease: Lease, caller: Caller) -> bool:
        """Let a lease wait; False if its user has more here than what is left for all others."""
        place = lease.id, caller.owner
        taken = Counter(other.uid for key, (_, other) in self._waiting.items() if key != place)
        if not may_have(caller.uid, taken, self._most):
            return False
        self._waiting[place] = lease, caller
        return True

    def drop(self, id: str, caller: Caller, token: int) -> bool:
        """What this caller has asked for under an id waits no longer. Returns whether it did."""
        lease, _ = self._waiting.get((id, caller.owner), (None, None))
        if lease is None or lease.token != token:
            return False
        del self._waiting[id, caller.owner]
        return True

    def take(self, id: str) -> list[tuple[Lease, Caller]]:
        """Those under one id, who wait no longer."""
        return [self._waiting.pop(key) for key in list(self._waiting) if key[0] == id]

    def gone(self, caller: Caller) -> None:
        """Nobody would hear an answer on this connection any more."""
        for key, (_, other) in list(self._waiting.items()):
            if other is caller:
                del self._waiting[key]

    def distrust(self, uid: int) -> None:
        """A lease of this user was never granted: what waits here for others goes before the rest of its own."""
        if not self._waiting:
            self._thrown_out.clear()
        self._thrown_out[uid] += 1

    def in_turn(self) -> list[tuple[Lease, Caller]]:
        """Those that wait, the latest grant first; last those of users who have made leases up."""
        return sorted(self._waiting.values(), key=lambda waits: (self._thrown_out[waits[1].uid], -waits[0].token))
