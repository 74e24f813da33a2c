"""How the pool is, in one word, and what is the matter with it: the worst of its active alerts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpulockd.alerting.judging import Alert
from gpulockd.alerting.judging import overall_status as worst_of
from gpulockd.alerting.records import book_of
from gpulockd.config.status import Facts, Status, gpus_not_well, overall_status
from gpulockd.model import Snapshot
from gpulockd.web.backend import Backend
from gpulockd.web.known import Known


class Overall(msgspec.Struct, frozen=True, kw_only=True):
    """The word, one line for each thing that is the matter, and how many alerts of each level are active."""

    status: Status
    issues: tuple[str, ...] = ()
    levels: dict[str, int] = {}


async def overall(backend: Backend, snapshot: Snapshot, known: Known) -> Overall:
    """Return how the pool is; where nobody judges alerts, by its cards and its last attempts.

    :raises StoreUnavailable: if the store is away
    """
    if backend.alerts is None:
        return of_facts(snapshot, known)
    book = book_of(await backend.stored_alerts())
    return of_alerts([alert for alert in book.alerts.values() if alert.pool == backend.pool])


def of_alerts(alerts: Sequence[Alert]) -> Overall:
    """Return what these alerts say."""
    active = [alert for alert in alerts if alert.state == "active"]
    active.sort(key=lambda alert: (alert.severity != "critical", alert.since_ms, alert.rule))
    levels = {level: sum(alert.severity == level for alert in active) for level in ("warning", "critical")}
    issues = tuple(f"{alert.rule}: {alert.detail or alert.message}" for alert in active)
    return Overall(status=worst_of(active), issues=issues, levels=levels)


def of_facts(snapshot: Snapshot, known: Known) -> Overall:
    """Return what cards and attempts say."""
    offered = [record for record in snapshot.gpus if record.offered]
    facts = Facts(
        gpus=len(offered),
        gpus_not_well=gpus_not_well(offered),
        recent_success_rate=known.recent_success_rate,
        recent_timeout_rate=known.recent_timeout_rate,
    )
    status = overall_status(facts)
    issues = [f"{record.gpu} is {record.state}" for record in offered if record.state in ("quarantined", "lost")]
    if status != "healthy" and not issues:
        issues = [f"{known.recent_success_rate:.0%} of the last attempts got the lock"]
    return Overall(status=status, issues=tuple(issues))
