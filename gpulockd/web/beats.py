"""The documented routes about the heartbeats of tasks.

A record stands while its lease does. One whose process died is told of for as long as a silence is borne, so that
somebody can see it; then it is gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpulockd.events import Event, LockExpired
from gpulockd.model import Snapshot
from gpulockd.web import monitoring_views as views
from gpulockd.web.backend import Backend
from gpulockd.web.known import Known
from gpulockd.web.overseeing import Oversees, TaskSeen
from gpulockd.web.problems import refusal
from gpulockd.web.table import Visit

DIED = "its process died"


async def all_heartbeats(visit: Visit) -> views.Heartbeats:
    """The tasks that hold a GPU, what each last said, and those that need a look."""
    backend = visit.backend
    snapshot, known = await backend.look(length=1), await backend.known()
    return heartbeats_of(backend, snapshot, known, await backend.events())


async def task_heartbeat(visit: Visit) -> views.HeartbeatOfTask:
    """One task by its id; one that nobody knows is not_found."""
    backend, task_id = visit.backend, visit.request.path_params["id"]
    overseer = oversees(backend)
    snapshot = await backend.look(length=1)
    beats, tasks = overseer.heartbeats(snapshot), overseer.tasks(snapshot)
    for id, beat in beats.items():
        if beat.task_id == task_id:
            if id in tasks.dead:
                return _of_record(task_id, "failed", _data(beat, "failed", DIED))
            return _of_record(task_id, "orphaned" if id in tasks.orphaned else beat.status, _data(beat, beat.status))
    died = _recently_dead(backend, snapshot, await backend.events()).get(task_id)
    if died is not None:
        end_s = died.at_ms / 1000
        data = views.HeartbeatData(
            task_id=task_id,
            status="failed",
            progress=0.0,
            message=DIED,
            start_time=end_s - (died.held_ms or 0) / 1000,
            last_update=end_s,
        )
        return _of_record(task_id, "failed", data)
    return _of_record(task_id, "not_found", None)


def heartbeats_of(backend: Backend, snapshot: Snapshot, known: Known, events: Sequence[Event]) -> views.Heartbeats:
    """Return the tasks of a snapshot, and those that died lately."""
    overseer = oversees(backend)
    beats, tasks = overseer.heartbeats(snapshot), overseer.tasks(snapshot)
    living = [id for id in (*tasks.active, *tasks.stalled) if id in beats]
    active = {beats[id].task_id: _beat(beats[id]) for id in living}
    dead = [beats[id].task_id for id in tasks.dead if id in beats]
    dead += [id for id in _recently_dead(backend, snapshot, events) if id not in active and id not in dead]
    orphaned = tuple(beats[id].task_id for id in tasks.orphaned if id in beats)
    return views.Heartbeats(
        active_tasks=active,
        dead_tasks=tuple(dead),
        orphaned_tasks=orphaned,
        stalled_tasks=tuple(beats[id].task_id for id in tasks.stalled if id in beats),
        statistics=views.HeartbeatStatistics(
            total_tasks=len(active) + len(dead) + len(orphaned),
            active_tasks=len(active),
            dead_tasks=len(dead),
            heartbeat_failures=known.total.of("heartbeat_missed"),
        ),
        timestamp=snapshot.at_ms / 1000,
    )


def oversees(backend: Backend) -> Oversees:
    """:raises ProblemError: 503 if nobody watches"""
    if backend.oversees is None:
        raise refusal(503, "not_watched", "this daemon watches no tasks", "its log says why")
    return backend.oversees


def _recently_dead(backend: Backend, snapshot: Snapshot, events: Sequence[Event]) -> dict[str, Event]:
    since_ms = snapshot.at_ms - round(backend.settings.gpu_lock_monitor.heartbeat.timeout * 1000)
    return {
        event.task_id: event
        for event in events
        if isinstance(event, LockExpired) and event.reason == "died" and event.task_id and event.at_ms >= since_ms
    }


def _beat(seen: TaskSeen) -> views.TaskBeat:
    return views.TaskBeat(
        status=seen.status,
        progress=seen.progress,
        message=seen.message,
        start_time=seen.start_time,
        last_heartbeat=seen.last_update,
    )


def _data(seen: TaskSeen, status: str, message: str = "") -> views.HeartbeatData:
    return views.HeartbeatData(
        task_id=seen.task_id,
        status=status,
        progress=seen.progress,
        message=message or seen.message,
        start_time=seen.start_time,
        last_update=seen.last_update,
    )


def _of_record(task_id: str, status: str, data: views.HeartbeatData | None) -> views.HeartbeatOfTask:
    return views.HeartbeatOfTask(
        task_id=task_id,
        status=status,
        heartbeat_exists=data is not None,
        is_registered=data is not None and status != "failed",
        is_running=status == "running",
        progress=data.progress if data else None,
        message=data.message if data else None,
        start_time=data.start_time if data else None,
        last_update=data.last_update if data else None,
        heartbeat_data=data,
    )
