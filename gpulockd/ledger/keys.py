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
| `parked:<id>` | string, TTL | the stamp of a waiter that left and will come back under another id |
| `recorded`, `recorded:tasks`, `recorded:<hour>` (TTL) | hash | statistics (gpulockd/ledger/recorded.py) |
| `recorded:load:<hour>` (TTL) | hash | load of server and gpus (gpulockd/ledger/load.py) |

The channel `config` of a pool tells `defaults <version> <JSON>` when what the pool publishes has changed.

The fleet's own slot, `gpulockd:{fleet}:<name>`; nobody's pool is called `fleet`:

| name | type | what |
|---|---|---|
| `pools` | set | the pools |
| `hosts` | hash | boot id -> the pool of that host's cards |
| `config` | hash | `current` revision, its `id`, the `stable` one, the `live` document (JSON) |
| `revisions` | hash | number -> a revision as it was made (JSON); the last 1,000 and the stable one |
| `marks` | hash | number -> whether the revision is stable, since when (ms), its outcome |
| `audit` | stream | who did what, one JSON field `a`; the last 100,000 at least |
| `validated` | hash | digest of a document -> when it was judged (ms), and the verdict (JSON) |
| `rollout` | hash | the rollout's version, state (JSON), driver, and clock |
| `bases:<pool>` | hash | revision -> what file and environment of that pool's daemon say (JSON) |
| `alerts`, `alerts_silences`, `alerts_daemons`, `alerts_channels` | hash | alerts (gpulockd/ledger/alerts.py) |
| `alerts_outbox` | hash | what is still to be told, and by whom |
| `alerts_history` | stream | alerts that were raised and resolved |

The channel `config` of the fleet tells `revised`, `marked`, `restored` or `rollout` and a number, after the change.
"""

from __future__ import annotations

from gpulockd.errors import ConfigError

PERMANENT = ("meta", "offered", "events", "counters", "offer", "recorded", "recorded:tasks")
"""What is left of a pool when all is quiet, besides keys with a TTL."""

FLEET_POOLS = "gpulockd:{fleet}:pools"
FLEET_HOSTS = "gpulockd:{fleet}:hosts"

FLEET = "fleet"
FLEET_BASE = "gpulockd:{fleet}:"
FLEET_CHANNEL = FLEET_BASE + "config"
FLEET_NAMES = ("config", "revisions", "marks", "audit", "validated", "rollout")
ALERT_NAMES = ("alerts", "alerts_outbox", "alerts_history", "alerts_silences", "alerts_daemons", "alerts_channels")
FLEET_PERMANENT = ("pools", "hosts", *FLEET_NAMES, *ALERT_NAMES)
"""What is left of the fleet when all is quiet, besides `bases:<pool>` of each pool."""


class PoolKeys:
    """The keys of one pool."""

    __slots__ = ("base", "config_channel", "events_channel", "pool", "wire")

    def __init__(self, pool: str) -> None:
        """:raises ConfigError: if `pool` cannot be the name of a pool"""
        if not 1 <= len(pool) <= 64 or not all((c.isalnum() and c.isascii()) or c in "_.-" for c in pool):
            raise ConfigError(f"pool {pool!r}: use 1 to 64 letters, digits or '_.-'")
        if pool == FLEET:
            raise ConfigError(f"pool {pool!r}: this name is the fleet's own; use another")
        self.pool = pool
        self.base = f"gpulockd:{{{pool}}}:"
        self.wire = (f"{self.base}meta".encode(),)
        """KEYS of every script: one names the slot, the other keys are made inside, in the same slot."""
        self.events_channel = self.base + "events"
        self.config_channel = self.base + "config"

    def session_channel(self, session: str) -> str:
        """The doorbell of a session."""
        return f"{self.base}session:{session}"


class FleetKeys:
    """The keys of the fleet's configuration; with the bases of one pool, where a call has to do with them."""

    __slots__ = ("pool", "wire")

    def __init__(self, bases_of: str = "") -> None:
        """:raises ConfigError: if `bases_of` cannot be the name of a pool"""
        self.pool = FLEET
        names = (*FLEET_NAMES, f"bases:{PoolKeys(bases_of).pool}") if bases_of else FLEET_NAMES
        self.wire = tuple(f"{FLEET_BASE}{name}".encode() for name in names)
        """KEYS of every script of the fleet, in this order."""
