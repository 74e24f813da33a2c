"""The documented routes about the lock itself: how it is, who has it, and taking it away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gpulockd.events import Event
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.tally import outcome
from gpulockd.model import DEFAULT_KEY, GPU_KEY_PREFIX, Snapshot, TicketRecord, Wants
from gpulockd.units import check_key
from gpulockd.web import monitoring_views as views
from gpulockd.web.auth import check_owner
from gpulockd.web.backend import Backend
from gpulockd.web.known import Known
from gpulockd.web.noting import note
from gpulockd.web.overall import Overall, overall
from gpulockd.web.problems import refusal
from gpulockd.web.standing import Standing
from gpulockd.web.table import Visit
from gpulockd.web.views import task_id_of

ANYBODY = "manual"
"""What the source documents call a release that names no task."""

MOST_ATTEMPTS = 5


async def lock_health(visit: Visit) -> views.LockHealth:
    """How the lock is; with no attempts yet it is healthy.

    :raises ProblemError: 422 for what is no key, 404 for a lock that this pool does not have
    """
    backend, key = visit.backend, _key(visit.request.query_params.get("lock_key"))

    async def look() -> views.LockHealth:
        snapshot, known = await backend.look(), await backend.known()
        _check_known(snapshot, key)
        return health_of(key, snapshot, known, await overall(backend, snapshot, known))

    healths: Standing[views.LockHealth] = backend.healths
    return await healths.answer(key, look)


async def lock_status(visit: Visit) -> views.LockStatus:
    """Who has the lock, and how the last attempts to get it ended.

    :raises ProblemError: 422 for what is no key, 404 for a lock that this pool does not have
    """
    backend, key = visit.backend, _key(visit.request.query_params.get("lock_key"))
    snapshot, known = await backend.look(), await backend.known()
    _check_known(snapshot, key)
    found, now_s = await overall(backend, snapshot, known), snapshot.at_ms / 1000
    holders = _holders(snapshot, key)
    first = holders[0] if holders else None
    age_s = first.held_ms / 1000 if first is not None else None
    counted = statistics_of(known)
    return views.LockStatus(
        lock_key=key,
        is_locked=bool(holders),
        lock_holder=task_id_of(first) if first is not None else None,
        lock_holders=tuple(task_id_of(lease) for lease in holders),
        lock_type="active" if holders else "free",
        lock_age=age_s,
        ttl_seconds=_ends_in_s(backend, first),
        timestamp=now_s,
        health=views.LockJudged(
            status=found.status,
            issues=found.issues,
            lock_age=age_s,
            last_lock_holder=_last_holder(first, await backend.events(), key),
            statistics=counted,
            timestamp=now_s,
        ),
        statistics=counted,
        recent_history=tuple(_attempts(await backend.events(), key))[-MOST_ATTEMPTS:],
    )


async def release_lock(visit: Visit) -> views.LockTaken:
    """Take a lock away from whoever has it now: exactly that lease, so who comes after it is not touched.

    :raises ProblemError: 403 if it is another user's, 409 if several share it, 422 for what is no key
    """
    backend, wish = visit.backend, visit.body
    key = _key(wish.lock_key)
    holders = _holders(await backend.look(length=1), key)
    if not holders:
        return views.LockTaken(success=False, message=f"nobody holds {key}", lock_key=key, task_name="")
    if len(holders) > 1:
        ids = ", ".join(lease.id for lease in holders)
        said = f"{key} is shared by {len(holders)} leases"
        raise refusal(409, "ambiguous", said, f"DELETE /api/v1/leases/ID takes one of them: {ids}")
    lease = holders[0]
    task = lease.job.task
    check_owner(visit.caller, lease.process.user if lease.process else "")
    if wish.task_name not in (ANYBODY, "", task, task_id_of(lease)):
        said = f"{key} is held by {task_id_of(lease)}, not by {wish.task_name[:128]}"
        return views.LockTaken(success=False, message=said, lock_key=key, task_name=task)
    call = verbs.end(backend.keys, session="", id=lease.id, token=lease.token, reason="operator")
    answer: Any = await backend.ask(call)
    if not isinstance(answer, a.Ended):
        said = f"{task_id_of(lease)} had just given {key} back"
        return views.LockTaken(success=False, message=said, lock_key=key, task_name=task)
    said = f"took {key} from {task_id_of(lease)}"
    await note(visit, "revoked", f"{said} (lease {lease.id}, token {lease.token}, pool {backend.pool})")
    return views.LockTaken(success=True, message=said, lock_key=key, task_name=task)


async def release_lock_too(visit: Visit) -> views.LockTaken:
    """The same, by the name that the code of the source documents has for it.

    :raises ProblemError: as `release_lock`
    """
    return await release_lock(visit)


def health_of(key: str, snapshot: Snapshot, known: Known, found: Overall) -> views.LockHealth:
    """Return the documented ten fields."""
    holders = _holders(snapshot, key)
    return views.LockHealth(
        overall_status=found.status,
        issues_count=len(found.issues),
        total_attempts=known.total.attempts,
        success_rate=known.total.success_rate,
        timeout_rate=known.total.timeout_rate,
        average_execution_time=(known.total.holds.mean_ms or 0.0) / 1000,
        recent_success_rate=known.recent_success_rate,
        lock_holder=task_id_of(holders[0]) if holders else None,
        lock_age=holders[0].held_ms / 1000 if holders else None,
        timestamp=snapshot.at_ms / 1000,
    )


def statistics_of(known: Known) -> views.LockStatistics:
    """Return the counts of all time."""
    total = known.total
    return views.LockStatistics(
        total_attempts=total.attempts,
        successful_acquisitions=total.of("acquired"),
        timeouts=total.of("timed_out"),
        failures=total.of("failed"),
        withdrawn=total.of("withdrawn"),
        success_rate=total.success_rate,
        timeout_rate=total.timeout_rate,
        recent_success_rate=known.recent_success_rate,
        recent_timeout_rate=known.recent_timeout_rate,
        average_wait_time=(total.waits.mean_ms or 0.0) / 1000,
        average_execution_time=(total.holds.mean_ms or 0.0) / 1000,
        total_execution_time=total.holds.sum_ms / 1000,
        execution_count=total.holds.count,
        since=known.since_ms / 1000 if known.since_ms else None,
    )


def _check_known(snapshot: Snapshot, key: str) -> None:
    """:raises ProblemError: 404 for a lock that is neither offered nor in use; the default one may be asked about"""
    known = [record.gpu.key for record in snapshot.gpus]
    known += [wanted for ticket in snapshot.queue for wanted in Wants.parse(ticket.wants).keys]
    if key == DEFAULT_KEY or key in known:
        return
    names = ", ".join(known[:8]) or "none"
    hint = f"it has {names}; a key without a GPU is known while somebody uses it"
    raise refusal(404, "not_found", f"pool {snapshot.pool} has no lock {key!r}", hint)


def _holders(snapshot: Snapshot, key: str) -> list[TicketRecord]:
    """The leases on a lock, the oldest first."""
    found = [lease for lease in snapshot.leases if lease.state in ("held", "claim") and key in lease.gpus]
    return sorted(found, key=lambda lease: lease.token)


def _key(said: str | None) -> str:
    if said is None:
        return DEFAULT_KEY
    return check_key(f"{GPU_KEY_PREFIX}{said}" if said.isascii() and said.isdigit() and len(said) < 6 else said)


def _ends_in_s(backend: Backend, lease: TicketRecord | None) -> float | None:
    """In how many seconds a lease would end by itself, if nobody renews it."""
    return None if lease is None or lease.ends_in_ms is None else lease.ends_in_ms / 1000


def _last_holder(now: TicketRecord | None, events: Sequence[Event], key: str) -> str | None:
    if now is not None:
        return task_id_of(now)
    return next(
        (event.task_id for event in reversed(events) if key in event.gpus and outcome(event) == "acquired"), None
    )


def _attempts(events: Sequence[Event], key: str) -> Iterator[views.Attempt]:
    """The attempts that got this lock, and those that got none: which one they wanted is not told."""
    for event in events:
        ended = outcome(event)
        if ended not in ("acquired", "timed_out", "failed") or (event.gpus and key not in event.gpus):
            continue
        waited_s, end_s = (event.waited_ms or 0) / 1000, event.at_ms / 1000
        yield views.Attempt(
            task_name=event.task or "",
            lock_key=key,
            success=ended == "acquired",
            start_time=end_s - waited_s,
            end_time=end_s,
            duration=waited_s,
        )
