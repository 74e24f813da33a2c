"""Who may name which id. Ids stand in every listing, so a peer's word for one proves nothing.

Its law: an id that is new to the fence is taken from whoever names it, until the ledger says whose it is; one that is
in the fence belongs to the session and process that brought it there, or to whom the ledger has named.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from gpulockd.daemon.callers import Caller
from gpulockd.daemon.fence import Fence, Lease, Party
from gpulockd.daemon.sharing import may_have

NOT_YOURS = "this session or lease belongs to another process"

MOST_FRESH = 1024
"""Leases that may be in by their processes' word alone; each costs the next comparison a question."""


class Standing(NamedTuple):
    """What an id stands for in the fence: a lease, or one who has joined it."""

    lease: Lease
    party: Party

    @property
    def is_fresh(self) -> bool:
        """Whether the ledger has not said so yet."""
        return self.lease.fresh or self.party.fresh


class Names:
    """Whose the ids in a fence are."""

    def __init__(self, fence: Fence) -> None:
        self.unproven: set[str] = set()
        """Leases that nobody of a known process has named: they belong to the ledger's session."""
        self._fence = fence

    def __repr__(self) -> str:
        return f"<Names of {self._fence!r}>"

    def others(self, caller: Caller, session: str, id: str) -> list[Standing]:
        """Whom else an id stands for than this caller in this session."""
        return [
            Standing(lease, party)
            for lease in self._fence.leases.values()
            for party in lease.parties
            if party.ticket == id
            and (party.state == "in" or lease.id == id)
            and not (party.session == session and (lease.id in self.unproven or caller.is_party(party)))
        ]

    def has_room(self, uid: int) -> bool:
        """Whether one more lease of this user may come in by its word; nobody's are all that there may be."""
        return may_have(uid, Counter(lease.holder.uid for lease in self._fence.fresh), MOST_FRESH)
