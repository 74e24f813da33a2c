"""Every key and channel of gpulockd, and what stands in it.

All of a pool lives in one hash slot, `gpulockd:{<pool>}:<name>`, so every change is one atomic script:

| name | type | what |
|---|---|---|
| `meta` | hash | clock, epoch, token, stamp, terms, offer: the pool's books |
| `sessions` | zset | session id -> its end on the ledger clock (ms) |
| `queue` | zset | ticket id -> score, all that wait: for places and printing |
| `offered` | zset | gpu key -> index: for readers; scripts know the offered gpus by the terms in `meta` |
| `gpus` | hash | key without hardware -> what sits on it: state, lease, shared leases, their MiB |
| `due` | zset | `lease:<id>`, `settle:<gpu>`, `place:<gpu>`, `session:<id>` -> when it is due (ms) |
| `held_back` | zset | ticket id -> score of those that have chosen their gpus |
| `events` | stream | what happened, one JSON field `e`; also published on the channel of the same name |
| `counters` | hash | how often each event happened |
| `offer` | hash | who offers the pool: host, machine, and the defaults published for clients |
| `ticket:<id>` | hash | a ticket, later the lease of the same id: `core` packed, `job`, and what few tickets have |
| `members:<lease>` | set | tickets of other processes that joined a lease |
| `session:<id>` | hash | the process of a session; the channel of that name is its doorbell |
| `session_tickets:<id>` | set | what a session has |
| `queue:<wants>` | zset | present tickets of equal wants |
| `heads:<gpu>`, `heads:any` | zset | wants -> score of the head of its queue |
| `done:<id>` | string, TTL | tombstone of a ticket or session: how it ended |
| `recorded`, `recorded:tasks`, `recorded:<hour>` (TTL) | hash | statistics (gpulockd/ledger/recorded.py) |

`gpulockd:{fleet}:pools` (set) lists the pools, `gpulockd:{fleet}:hosts` (hash) the pool of each boot id.
"""

from __future__ import annotations

from gpulockd.errors import ConfigError

PERMANENT = ("meta", "offered", "events", "counters", "offer", "recorded", "recorded:tasks")
"""What is left of a pool when all is quiet, besides keys with a TTL."""

FLEET_POOLS = "gpulockd:{fleet}:pools"
FLEET_HOSTS = "gpulockd:{fleet}:hosts"


class PoolKeys:
    """The keys of one pool."""

    __slots__ = ("base", "events_channel", "pool", "wire")

    def __init__(self, pool: str) -> None:
        """:raises ConfigError: if `pool` cannot be the name of a pool"""
        if not 1 <= len(pool) <= 64 or not all((c.isalnum() and c.isascii()) or c in "_.-" for c in pool):
            raise ConfigError(f"pool {pool!r}: use 1 to 64 letters, digits or '_.-'")
        self.pool = pool
        self.base = f"gpulockd:{{{pool}}}:"
        self.wire = (f"{self.base}meta".encode(),)
        """KEYS of every script: one names the slot, the other keys are made inside, in the same slot."""
        self.events_channel = self.base + "events"

    def session_channel(self, session: str) -> str:
        """The doorbell of a session."""
        return f"{self.base}session:{session}"
