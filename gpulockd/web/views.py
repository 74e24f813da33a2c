"""What the routes answer, as JSON sees it: times in seconds, memory in MiB."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.model import GpuRecord, Snapshot, TicketRecord


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


class GpuView(msgspec.Struct, frozen=True, kw_only=True):
    """A gpu and the ids of the leases on it."""

    key: str
    index: int | None
    uuid: str | None
    name: str | None
    memory_mib: int | None
    used_mib: int
    state: str
    offered: bool
    leases: tuple[str, ...]


class Steered(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator has done with a gpu: its state now, and before."""

    key: str
    state: str
    was: str


class TicketView(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the queue; place 1 is next."""

    id: str
    place: int | None
    state: str
    wants: str
    priority: int
    task: str
    task_id: str
    user: str
    pid: int | None
    host: str
    program: str
    waited_s: float


class LeaseView(TicketView, frozen=True, kw_only=True):
    """A lease: on which gpus, since when, how far. `of`: the lease that this one is a member of."""

    token: int
    gpus: tuple[str, ...]
    held_s: float
    percent: float | None
    note: str | None
    heartbeat_age_s: float | None
    of: str | None


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
    queue: tuple[TicketView, ...]


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


def gpu_view(record: GpuRecord, snapshot: Snapshot) -> GpuView:
    """Return a gpu with its leases."""
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
    )


def ticket_view(record: TicketRecord) -> TicketView:
    """Return a place in the queue."""
    return TicketView(**_ticket(record))


def lease_view(record: TicketRecord) -> LeaseView:
    """Return a lease."""
    age_ms = record.heartbeat_age_ms
    return LeaseView(
        token=record.token,
        gpus=record.gpus,
        held_s=record.held_ms / 1000,
        percent=record.percent,
        note=record.note,
        heartbeat_age_s=None if age_ms is None else age_ms / 1000,
        of=record.of or None,
        **_ticket(record),
    )


def _ticket(record: TicketRecord) -> dict[str, Any]:
    process = record.process
    task_id = record.job.task_id or (f"{record.job.task}#{record.token}" if record.token else "")
    return {
        "id": record.id,
        "place": record.place,
        "state": record.state,
        "wants": record.wants,
        "priority": record.priority,
        "task": record.job.task,
        "task_id": task_id,
        "user": process.user if process else "",
        "pid": process.pid if process else None,
        "host": process.host if process else "",
        "program": process.program if process else "",
        "waited_s": record.waited_ms / 1000,
    }
