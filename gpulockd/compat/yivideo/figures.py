"""What YiVideo's functions answer, made of what was seen of a pool: plain dictionaries, times in (unix) seconds.

Pure. The same words stand in the documented HTTP routes, and mean the same there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gpulockd.compat.yivideo.pool import Seen, task_id_of
from gpulockd.events import Event, LockAcquired
from gpulockd.ledger.tally import outcome, recent_success_rate

MOST_HISTORY = 100

LOW_SUCCESS, HIGH_TIMEOUT, LONG_HELD_S, LOW_RECENT = 0.8, 0.2, 3600.0, 0.7
"""Where YiVideo's health check calls a lock unhealthy."""

CRITICAL_RECENT = 0.5
"""The share of the last attempts below which more fails than not."""

NOT_WELL = frozenset({"quarantined", "lost"})

ISSUES = {"GPU_LOCK_SUCCESS_RATE_LOW": "低成功率", "GPU_LOCK_TIMEOUT_RATE_HIGH": "高超时率"}
"""What YiVideo calls an issue that is an alert here."""


class Hearing(msgspec.Struct, frozen=True, kw_only=True):
    """How this process hears that a lock is free: its subscriptions, and whether all of them stand."""

    subscriptions: int = 0
    all_stand: bool = True


def statistics_of(seen: Seen, hearing: Hearing) -> dict[str, Any]:
    """The counts of the pool. What told a waiter, and who was last, is of its last events."""
    total = seen.total
    last = _last_acquired(seen)
    told = [event.via for event in seen.events if isinstance(event, LockAcquired) and event.via]
    by_doorbell, by_poll = told.count("doorbell"), told.count("poll")
    return {
        "total_attempts": total.attempts,
        "successful_acquisitions": total.of("acquired"),
        "timeouts": total.of("timed_out"),
        "average_wait_time": (total.waits.mean_ms or 0.0) / 1000,
        "last_lock_time": last.at_ms / 1000 if last is not None else None,
        "last_lock_holder": last.task_id if last is not None else None,
        "total_execution_time": total.holds.sum_ms / 1000,
        "execution_count": total.holds.count,
        "event_driven_acquisitions": by_doorbell,
        "polling_acquisitions": by_poll,
        "success_rate": total.success_rate,
        "timeout_rate": total.timeout_rate,
        "average_execution_time": (total.holds.mean_ms or 0.0) / 1000,
        "history_size": min(MOST_HISTORY, sum(1 for _ in _attempts(seen))),
        "recent_success_rate": recent_success_rate(seen.recent),
        "event_driven_rate": by_doorbell / len(told) if told else 0.0,
        "polling_rate": by_poll / len(told) if told else 0.0,
        "pub_sub_available": hearing.all_stand,
        "active_waiters": seen.snapshot.queued if seen.snapshot is not None else 0,
        "pub_sub_subscriptions": hearing.subscriptions,
    }


def health_of(seen: Seen, key: str, hearing: Hearing) -> dict[str, Any]:
    """How a lock is: the worst active alert of its pool, as on the page; YiVideo's own rules where no daemon judges."""
    holders = seen.holders(key)
    age_s = holders[0].held_ms / 1000 if holders else None
    status, issues = _by_alerts(seen) if seen.alerts is not None else _by_figures(seen, age_s)
    last = _last_acquired(seen, key)
    return {
        "status": status,
        "issues": issues,
        "lock_age": age_s,
        "last_lock_holder": task_id_of(holders[0]) if holders else last.task_id if last is not None else None,
        "statistics": statistics_of(seen, hearing),
        "timestamp": _now_s(seen),
    }


def status_of(seen: Seen, key: str, hearing: Hearing) -> dict[str, Any]:
    """Who has a lock, and how it was lately."""
    holders, health = seen.holders(key), health_of(seen, key, hearing)
    ends_in_ms = holders[0].ends_in_ms if holders else None
    return {
        "lock_key": key,
        "is_locked": bool(holders),
        "lock_holder": task_id_of(holders[0]) if holders else None,
        "ttl_seconds": None if ends_in_ms is None else ends_in_ms / 1000,
        "timestamp": _now_s(seen),
        "health": health,
        "statistics": health["statistics"],
        "recent_history": history_of(seen, 5, key),
        "lock_type": "active" if holders else "free",
        "lock_age": health["lock_age"],
    }


def summary_of(seen: Seen, key: str, hearing: Hearing) -> dict[str, Any]:
    """How a lock is, in the ten documented fields."""
    health, holders = health_of(seen, key, hearing), seen.holders(key)
    counted = health["statistics"]
    return {
        "overall_status": health["status"],
        "issues_count": len(health["issues"]),
        "total_attempts": counted["total_attempts"],
        "success_rate": counted["success_rate"],
        "timeout_rate": counted["timeout_rate"],
        "average_execution_time": counted["average_execution_time"],
        "recent_success_rate": counted["recent_success_rate"],
        "lock_holder": task_id_of(holders[0]) if holders else None,
        "lock_age": health["lock_age"],
        "timestamp": health["timestamp"],
    }


def history_of(seen: Seen, limit: int, key: str | None = None) -> list[dict[str, Any]]:
    """The last attempts, the latest last; with a key, those that got it and those that got nothing.

    What an attempt that got nothing had asked for is not kept, so its `lock_key` is None.
    """
    found = [
        {
            "task_name": event.task or "",
            "lock_key": ",".join(event.gpus) or None,
            "success": outcome(event) == "acquired",
            "start_time": (event.at_ms - (event.waited_ms or 0)) / 1000,
            "end_time": event.at_ms / 1000,
            "duration": (event.waited_ms or 0) / 1000,
        }
        for event in _attempts(seen)
        if key is None or not event.gpus or key in event.gpus
    ]
    return found[-limit:] if limit > 0 else []


def _by_alerts(seen: Seen) -> tuple[str, list[str]]:
    alerts = seen.alerts or ()
    issues = [f"{ISSUES.get(alert.rule, alert.rule)}: {alert.detail or alert.message}" for alert in alerts]
    if any(alert.is_critical for alert in alerts):
        return "critical", issues
    return ("warning" if issues else "healthy"), issues


def _by_figures(seen: Seen, age_s: float | None) -> tuple[str, list[str]]:
    total, recent = seen.total, recent_success_rate(seen.recent)
    records = [record for record in (seen.snapshot.gpus if seen.snapshot is not None else ()) if record.offered]
    not_well = [f"{record.gpu} is {record.state}" for record in records if record.state in NOT_WELL]
    rules = (
        (total.success_rate < LOW_SUCCESS, f"低成功率: {total.success_rate:.2%}"),
        (total.timeout_rate > HIGH_TIMEOUT, f"高超时率: {total.timeout_rate:.2%}"),
        (age_s is not None and age_s > LONG_HELD_S, f"锁持有时间过长: {age_s or 0.0:.0f}秒"),
        (recent < LOW_RECENT, f"最近成功率低: {recent:.2%}"),
    )
    issues = [text for is_so, text in rules if is_so] + not_well
    none_left = bool(records) and len(not_well) == len(records)
    if none_left or recent < CRITICAL_RECENT:
        return "critical", issues
    return ("warning" if issues else "healthy"), issues


def _attempts(seen: Seen) -> Iterator[Event]:
    """The attempts that the lock has decided."""
    return (event for event in seen.events if outcome(event) in ("acquired", "timed_out", "failed"))


def _last_acquired(seen: Seen, key: str | None = None) -> Event | None:
    found = (event for event in reversed(seen.events) if isinstance(event, LockAcquired))
    return next((event for event in found if key is None or key in event.gpus), None)


def _now_s(seen: Seen) -> float:
    return seen.at_ms / 1000
