"""`TaskHeartbeatManager`: what tasks say of themselves, in the leases that they hold.

A record stands while its lease does: there is no second book that could say something else. That the process lives is
told by itself, by the keepalive of the client; nobody has to start anything for it.
"""

from __future__ import annotations

from typing import Any, Literal

from gpulockd.compat.yivideo import holds, pool
from gpulockd.errors import GpuLockError, LeaseLost
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from gpulockd.model import Snapshot, TicketRecord

Status = Literal["running", "completed", "failed"]

STATUSES = ("running", "completed", "failed")


class TaskHeartbeatManager:
    """Heartbeats by the ids of tasks, from the process that holds the lock or from any other that knows the pool."""

    def __repr__(self) -> str:
        return "<TaskHeartbeatManager>"

    def start_task_heartbeat(self, task_id: str) -> bool:
        """Say that a task has begun, at 0 %. Returns whether it holds a lock now: before that it has no record."""
        return _say(task_id, 0.0, "")

    def update_task_heartbeat(
        self, task_id: str, status: Status = "running", progress: float = 0.0, message: str = ""
    ) -> bool:
        """Say how far a task is.

        :param status: "running"; "completed" and "failed" are told in front of the message, since the record ends with
            the lease
        :param progress: percent; more than 100 is 100, less than 0 is 0
        :returns: False if no task of that id holds a lock
        :raises ValueError: for another status
        """
        if status not in STATUSES:
            raise ValueError(f"status={status!r}: say running, completed or failed")
        said = message if status == "running" else f"{status}: {message}" if message else status
        return _say(task_id, min(100.0, max(0.0, float(progress))), said)

    def stop_task_heartbeat(self, task_id: str) -> bool:
        """Clear what a task has said. Returns False if no task of that id holds a lock."""
        return _say(task_id, None, "")

    def check_task_heartbeat(self, task_id: str) -> dict[str, Any] | None:
        """The record of a task: task_id, status, progress, message, last_update, start_time; None if it has none."""
        snapshot = pool.ask(pool.pictured)
        lease = _lease_of(snapshot, task_id)
        return _record(snapshot, lease) if snapshot is not None and lease is not None else None

    def check_all_heartbeats(self) -> dict[str, dict[str, Any]]:
        """The records of all tasks that hold a lock, by their ids."""
        snapshot = pool.ask(pool.pictured)
        leases = [lease for lease in snapshot.leases if lease.state == "held"] if snapshot is not None else []
        return {pool.task_id_of(lease): _record(snapshot, lease) for lease in leases if snapshot is not None}


def _say(task_id: str, percent: float | None, note: str) -> bool:
    """Tell it to the lease of that task; False if there is none."""
    hold = holds.living_of(task_id)
    if hold is not None:
        try:
            hold.lease.progress(percent, note)
        except LeaseLost:
            return False
        except GpuLockError:
            if hold.lease.living:
                raise
            return False
        return True

    async def tell(store: Store, keys: PoolKeys) -> bool:
        lease = _lease_of(await pool.pictured(store, keys), task_id)
        if lease is None:
            return False
        call = verbs.progress(keys, session="", id=lease.id, token=lease.token, percent=percent, note=note[:500])
        answer = await store.ask(call)
        return isinstance(answer, a.Noted)

    return pool.ask(tell)


def _lease_of(snapshot: Snapshot | None, task_id: str) -> TicketRecord | None:
    """The latest lease of a task."""
    leases = snapshot.leases if snapshot is not None else ()
    found = [lease for lease in leases if lease.state == "held" and pool.task_id_of(lease) == task_id]
    return max(found, key=lambda lease: lease.token, default=None)


def _record(snapshot: Snapshot, lease: TicketRecord) -> dict[str, Any]:
    """What a task last said. With automatic heartbeats its process speaks for it, besides."""
    now_s, started_s = snapshot.at_ms / 1000, (snapshot.at_ms - lease.held_ms) / 1000
    ages = (lease.heartbeat_age_ms, lease.seen_age_ms if lease.job.heartbeat == "automatic" else None)
    heard = [age_ms for age_ms in ages if age_ms is not None]
    return {
        "task_id": pool.task_id_of(lease),
        "status": "running",
        "progress": lease.percent or 0.0,
        "message": lease.note or "",
        "last_update": now_s - min(heard) / 1000 if heard else started_s,
        "start_time": started_s,
    }


_manager = TaskHeartbeatManager()


def get_heartbeat_manager() -> TaskHeartbeatManager:
    """The manager of this process."""
    return _manager


start_task_heartbeat = _manager.start_task_heartbeat
update_task_heartbeat = _manager.update_task_heartbeat
stop_task_heartbeat = _manager.stop_task_heartbeat
