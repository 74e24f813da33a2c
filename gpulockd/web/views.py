"""What the routes answer, as JSON sees it: times in seconds, memory in MiB."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.ledger.forecast import Expected
from gpulockd.model import GpuRecord, Snapshot, TicketRecord
from gpulockd.web.overseeing import CardReading


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon runs."""

    status: str = "ok"


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's GPUs can be had."""

    status: str
    pool: str
    gpus: int


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """A pool at one moment. `frozen_s` > 0: it grants nothing for so long, and `frozen_why`."""

    pool: str
    host: str
    offered: bool
    guarded: bool
    epoch: str
    frozen_s: float
    frozen_why: str
    gpus: int
    leases: int
    queued: int
    sessions: int
    token: int
    counters: dict[str, int]


class ReadingView(msgspec.Struct, frozen=True, kw_only=True):
    """What a card last told, `at` unix seconds: memory in MiB, utilization 0 to 1, °C and W; null: it does not tell."""

    at: float
    used_mib: int | None
    total_mib: int | None
    utilization: float | None
    temperature_c: float | None
    power_w: float | None


class GpuView(msgspec.Struct, frozen=True, kw_only=True):
    """A gpu, the ids of the leases on it, and what its card last told; null where there is no card to tell."""

    key: str
    index: int | None
    uuid: str | None
    name: str | None
    memory_mib: int | None
    used_mib: int
    state: str
    offered: bool
    leases: tuple[str, ...]
    reading: ReadingView | None


class Steered(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has done with a gpu: its state now, and before."""

    key: str
    state: str
    was: str


class TicketView(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the queue; place 1 is next.

    `pid_seen`: `pid` is the host's; else the number that the process calls itself, which is another in a container.
    """

    id: str
    place: int | None
    state: str
    wants: str
    priority: int
    task: str
    task_id: str
    user: str
    pid: int | None
    pid_seen: bool
    host: str
    program: str
    waited_s: float


class ExpectedView(msgspec.Struct, frozen=True, kw_only=True):
    """When something is expected, in seconds from now: half of the time between `early_s` and `late_s`."""

    early_s: float
    middle_s: float
    late_s: float


class QueuedView(TicketView, frozen=True, kw_only=True):
    """A place in the queue, when it may get its gpus (null where that cannot be said), and why it has none yet."""

    expected_start: ExpectedView | None
    why: str


class LimitsView(msgspec.Struct, frozen=True, kw_only=True):
    """The ages at which a holder is warned of, asked to stop, and ended (in seconds)."""

    warning_s: float
    soft_s: float
    hard_s: float


class LeaseView(TicketView, frozen=True, kw_only=True):
    """A lease: on which gpus, since when, how far, and when it may end; null where that cannot be said.

    `of`: the lease that this one is a member of. `level`: the highest time limit that was acted on. `stopping`: its
    holder was asked to stop. `ends_in_s`: until a lease that was asked for with a `ttl` ends; null: it has none.
    """

    token: int
    gpus: tuple[str, ...]
    held_s: float
    percent: float | None
    note: str | None
    heartbeat_age_s: float | None
    of: str | None
    level: str
    limits: LimitsView
    stopping: bool
    ends_in_s: float | None
    expected_end: ExpectedView | None


class Pools(msgspec.Struct, frozen=True, kw_only=True):
    """The pools of this daemon."""

    pools: tuple[PoolView, ...]


class Gpus(msgspec.Struct, frozen=True, kw_only=True):
    """The gpus of the pool."""

    pool: str
    gpus: tuple[GpuView, ...]


class Leases(msgspec.Struct, frozen=True, kw_only=True):
    """The leases of the pool."""

    pool: str
    leases: tuple[LeaseView, ...]


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """One page of the queue, from place `first` + 1; `queued` counts all of it."""

    pool: str
    queued: int
    first: int
    queue: tuple[QueuedView, ...]


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The lease that was ended."""

    id: str
    token: int
    gpus: tuple[str, ...]
    task: str
    reason: str


def pool_view(snapshot: Snapshot) -> PoolView:
    """Return the pool without its parts."""
    return PoolView(
        pool=snapshot.pool,
        host=snapshot.host,
        offered=snapshot.offered,
        guarded=snapshot.guarded,
        epoch=snapshot.epoch,
        frozen_s=snapshot.frozen_ms / 1000,
        frozen_why=snapshot.frozen_why,
        gpus=len(snapshot.gpus),
        leases=sum(lease.state != "member" for lease in snapshot.leases),
        queued=snapshot.queued,
        sessions=snapshot.sessions,
        token=snapshot.token,
        counters=snapshot.counters,
    )


def gpu_view(record: GpuRecord, snapshot: Snapshot, reading: CardReading | None = None) -> GpuView:
    """Return a gpu with its leases and what its card last told."""
    gpu = record.gpu
    return GpuView(
        key=gpu.key,
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        memory_mib=gpu.memory_mib,
        used_mib=record.used_mib,
        state=record.state,
        offered=record.offered,
        leases=tuple(lease.id for lease in snapshot.leases if gpu.key in lease.gpus and lease.state != "member"),
        reading=None if reading is None else _reading(reading),
    )


def _reading(reading: CardReading) -> ReadingView:
    return ReadingView(
        at=reading.at_ms / 1000,
        used_mib=reading.used_mib,
        total_mib=reading.total_mib,
        utilization=reading.utilization,
        temperature_c=reading.temperature_c,
        power_w=reading.power_w,
    )


def queued_view(record: TicketRecord, start: Expected | None, why: str) -> QueuedView:
    """Return a place in the queue."""
    return QueuedView(expected_start=_expected(start), why=why, **_ticket(record))


def _expected(when: Expected | None) -> ExpectedView | None:
    if when is None:
        return None
    return ExpectedView(early_s=when.early_s, middle_s=when.middle_s, late_s=when.late_s)


def lease_view(
    record: TicketRecord, end: Expected | None, limits_s: tuple[float, float, float], ends_in_s: float | None = None
) -> LeaseView:
    """Return a lease."""
    warning_s, soft_s, hard_s = limits_s
    age_ms = record.heartbeat_age_ms
    return LeaseView(
        token=record.token,
        gpus=record.gpus,
        held_s=record.held_ms / 1000,
        percent=record.percent,
        note=record.note,
        heartbeat_age_s=None if age_ms is None else age_ms / 1000,
        of=record.of or None,
        level=record.level,
        limits=LimitsView(warning_s=warning_s, soft_s=soft_s, hard_s=hard_s),
        stopping=record.asked_to_stop or record.level in ("soft", "hard"),
        ends_in_s=ends_in_s,
        expected_end=_expected(end),
        **_ticket(record),
    )


def task_id_of(record: TicketRecord) -> str:
    """Which run of its task a ticket is: as named, else `<task>#<token>`; empty for one that has neither."""
    return record.job.task_id or (f"{record.job.task}#{record.token}" if record.token else "")


def _ticket(record: TicketRecord) -> dict[str, Any]:
    process = record.process
    return {
        "id": record.id,
        "place": record.place,
        "state": record.state,
        "wants": record.wants,
        "priority": record.priority,
        "task": record.job.task,
        "task_id": task_id_of(record),
        "user": process.user if process else "",
        "pid": process.pid if process else None,
        "pid_seen": process.seen if process else False,
        "host": process.host if process else "",
        "program": process.program if process else "",
        "waited_s": record.waited_ms / 1000,
    }
