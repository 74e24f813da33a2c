"""The heartbeats of tasks as people and the source documents know them: pure, made from the leases themselves.

There is no second book of tasks that could say something else than the ledger: a record stands while its lease does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

from gpulockd.daemon.judging import Reading, Readings, is_silent
from gpulockd.daemon.levels import Rules
from gpulockd.model import Snapshot, TicketRecord

Condition = Literal["active", "stalled", "dead", "orphaned"]


class HeartbeatRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a task last said. `progress` is 0 to 100; `start_time` and `last_update` are unix seconds."""

    task_id: str
    status: Literal["running", "completed", "failed"] = "running"
    progress: float
    message: str
    start_time: float
    last_update: float


def task_id_of(lease: TicketRecord) -> str:
    """Which run of its task a lease is: as its holder has named it, else `<task>#<token>`."""
    return lease.job.task_id or f"{lease.job.task}#{lease.token}"


def heartbeat_record(lease: TicketRecord, now_s: float) -> HeartbeatRecord:
    """The record of a living lease; it is gone when the lease is.

    :param now_s: the wall clock at the moment of the snapshot (unix seconds)
    """
    started_s = now_s - lease.held_ms / 1000
    ages = (lease.heartbeat_age_ms, lease.seen_age_ms if lease.job.heartbeat == "automatic" else None)
    heard = [age_ms for age_ms in ages if age_ms is not None]
    return HeartbeatRecord(
        task_id=task_id_of(lease),
        progress=lease.percent or 0.0,
        message=lease.note or "",
        start_time=started_s,
        last_update=now_s - min(heard) / 1000 if heard else started_s,
    )


class Tasks(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of tickets by the condition of their tasks.

    Dead: the process is gone. Orphaned: it belongs to a lease that is not there. Stalled: silent for too long.
    """

    active: tuple[str, ...] = ()
    stalled: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    orphaned: tuple[str, ...] = ()


def condition_of(lease: TicketRecord, reading: Reading, leases: Collection[str | None], rules: Rules) -> Condition:
    """How a task is; what is not known counts as well.

    :param leases: the ids of the leases that stand
    """
    if reading.gone:
        return "dead"
    if lease.state == "member":
        return "active" if lease.of in leases else "orphaned"
    return "stalled" if is_silent(lease, rules) else "active"


def tasks_of(snapshot: Snapshot, readings: Readings, rules: Rules) -> Tasks:
    """All tasks that hold something, by condition."""
    standing = {lease.id for lease in snapshot.leases if lease.state in ("held", "claim")}
    found: dict[Condition, list[str]] = {"active": [], "stalled": [], "dead": [], "orphaned": []}
    for lease in snapshot.leases:
        if lease.state in ("held", "member"):
            reading = readings.runs.get(lease.id, Reading())
            found[condition_of(lease, reading, standing, rules)].append(lease.id)
    return Tasks(**{condition: tuple(ids) for condition, ids in found.items()})


def orphans(records: Iterable[str], snapshot: Snapshot) -> tuple[str, ...]:
    """Those of the task ids that no lease of the pool carries: their records must be cleaned away."""
    known = {task_id_of(lease) for lease in snapshot.leases}
    return tuple(task_id for task_id in records if task_id not in known)
