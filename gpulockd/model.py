"""The nouns of gpulockd: gpus, sessions, wants, tickets, leases and the snapshot of a pool.

All are frozen values. The same words stand in Lua, keys, JSON, logs and docs (docs/why.md, "Words").
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gpulockd.errors import ImpossibleRequest
from gpulockd.units import check_key

DEFAULT_KEY = "gpu_lock:0"
"""What "any GPU" means in a pool that nobody has offered."""

GPU_KEY_PREFIX = "gpu_lock:"

PROBE_KEY = "gpu_lock:config-probe"
"""The slot by which a daemon checks that leases are granted, after its configuration was taken back: it has no
hardware, so a grant and a release of it go all the way and disturb nobody."""


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One slot of a pool: a card, a MIG instance, a simulated card, or a key without hardware.

    `memory_mib` is in MiB; `index`, `uuid`, `name` and `memory_mib` are None for a slot without hardware.
    """

    key: str
    index: int | None = None
    uuid: str | None = None
    name: str | None = None
    memory_mib: int | None = None

    @property
    def device(self) -> str:
        """The name that torch uses when all cards are visible: "cuda:0"."""
        return "cpu" if self.index is None else f"cuda:{self.index}"

    def __str__(self) -> str:
        return self.key if self.index is None else f"GPU {self.index}"


class Wants(msgspec.Struct, frozen=True, kw_only=True):
    """What a ticket asks for: `count` gpus, any or the given `keys`, each whole or with a memory budget in MiB."""

    count: int = 1
    keys: tuple[str, ...] = ()
    memory_mib: int = 0
    exclusive: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or isinstance(self.count, bool) or not 1 <= self.count <= 64:
            raise ImpossibleRequest(f"count={self.count!r}: ask for 1 to 64 GPUs")
        for key in self.keys:
            check_key(key)
        if len(set(self.keys)) != len(self.keys):
            raise ImpossibleRequest(f"the same GPU is named twice: {', '.join(self.keys)}")
        if self.keys and self.count != len(self.keys):
            raise ImpossibleRequest(f"count={self.count} does not fit the {len(self.keys)} keys given; leave count out")

    @property
    def text(self) -> str:
        """The canonical form that Lua queues by: equal text means equal wants, which never overtake each other."""
        mode = "exclusive" if self.exclusive else "shared"
        place = ",".join(sorted(self.keys)) if self.keys else "any"
        return f"{mode}:{self.count}:{self.memory_mib}:{place}"

    @classmethod
    def parse(cls, text: str) -> Wants:
        """Read back what `text` wrote."""
        mode, count, memory_mib, place = text.split(":", 3)
        keys = () if place == "any" else tuple(place.split(","))
        return cls(count=int(count), keys=keys, memory_mib=int(memory_mib), exclusive=mode == "exclusive")

    def __str__(self) -> str:
        if self.keys:
            what = ", ".join(key.replace(GPU_KEY_PREFIX, "GPU ") if key[9:].isdigit() else key for key in self.keys)
        else:
            what = "any GPU" if self.count == 1 else f"any {self.count} GPUs"
        if self.memory_mib:
            what += (
                f" with {self.memory_mib / 1024:g} GiB" if self.exclusive else f", {self.memory_mib / 1024:g} GiB of it"
            )
        return what


class Process(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who a session is: one process incarnation on one boot of one host. `started_ticks` is its kernel start time.

    `seen`: `pid` is the host's, as its daemon sees it; else the number that the process calls itself, perhaps in a
    container. `namespace`: where pid and start time are counted; "" where the process is not sure of that.
    """

    pid: int
    host: str
    boot_id: str
    user: str = ""
    program: str = ""
    started_ticks: int = 0
    seen: bool = False
    namespace: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the holder says about its work. Limits are in seconds; None means the pool's setting."""

    task: str
    task_id: str = ""
    warning_s: float | None = None
    soft_timeout_s: float | None = None
    hard_timeout_s: float | None = None
    heartbeat: Literal["automatic", "manual"] = "automatic"


class PoolClock(msgspec.Struct, frozen=True, kw_only=True):
    """The terms under which an answer was given, in ms: the pool's epoch, session ttl, keepalive and clock step.

    `guarded`: the guard of the pool's host stands, and lets in who begins there. `version`: of what the pool publishes.
    """

    epoch: str
    ttl_ms: int
    step_ms: int
    keepalive_ms: int
    guarded: bool = False
    version: int = 0


TicketState = Literal["waiting", "away", "claim", "held", "member"]
GpuState = Literal["ready", "settling", "quarantined", "drained", "lost"]


class GpuRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A gpu as the ledger has it: what it is, what sits on it (memory in MiB) and whether it may begin."""

    gpu: Gpu
    state: GpuState
    offered: bool
    exclusive: str | None
    shared: int
    used_mib: int


class TicketRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket or lease as the ledger has it; ages and waits are in ms of ledger time.

    `level` is the highest time limit that was acted on; `asked_to_stop`: an operator wants it to end. `seen_age_ms`:
    since a keepalive or the task itself renewed it; `heartbeat_age_ms`: since the task spoke; `missed_age_ms`: since
    its silence was told of. `ends_in_ms`: until a lease ends by itself if nothing renews it.
    """

    id: str
    state: TicketState
    session: str
    wants: str
    priority: int
    job: Job
    process: Process | None
    waited_ms: int
    gpus: tuple[str, ...] = ()
    token: int = 0
    held_ms: int = 0
    percent: float | None = None
    note: str | None = None
    heartbeat_age_ms: int | None = None
    level: Literal["", "warning", "soft", "hard"] = ""
    asked_to_stop: bool = False
    seen_age_ms: int | None = None
    missed_age_ms: int | None = None
    ends_in_ms: int | None = None
    of: str | None = None
    place: int | None = None
    chosen: tuple[str, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of a pool in Redis at one moment. `queued` counts the whole queue, `queue` is one page of it."""

    pool: str
    epoch: str
    at_ms: int
    token: int
    offered: bool
    guarded: bool
    boot_id: str
    host: str
    frozen_ms: int
    frozen_why: str
    gpus: tuple[GpuRecord, ...]
    leases: tuple[TicketRecord, ...]
    queue: tuple[TicketRecord, ...]
    queued: int
    sessions: int
    next_due_ms: int | None
    counters: dict[str, int]
