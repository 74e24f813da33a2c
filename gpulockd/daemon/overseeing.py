"""What the services of this daemon know, put together for those who only look: routes, metrics, rules of alerts.

It decides nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from gpulockd.clock import boottime_s, wall_ms
from gpulockd.daemon.cardlooks import CardLooks
from gpulockd.daemon.heartbeats import HeartbeatRecord, Tasks, heartbeat_record, tasks_of
from gpulockd.daemon.judging import Reading, Readings
from gpulockd.daemon.levels import Rules
from gpulockd.daemon.obeying import Counts
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.readings import Reading as CardReading
from gpulockd.ledger.suspicions import Evidence
from gpulockd.model import Snapshot


class Checks(Protocol):
    """What the monitor has counted; moments are unix milliseconds."""

    started_ms: int
    total: int
    healthy: int
    unhealthy: int
    last_ms: int | None
    last_error: str | None
    heard: int
    missed: int


class Runs(Protocol):
    """Knows the living processes of runs, by lease id."""

    def members(self, lease: str) -> frozenset[Process]: ...


class Oversight(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor's counts since it began; moments are unix seconds. `works`: its last check was in time and saw."""

    is_running: bool
    works: bool
    started_s: float
    last_check_s: float | None
    last_error: str | None
    checks: int
    healthy: int
    unhealthy: int
    warnings: int
    softs: int
    hards: int
    recovered: int
    failed: int
    last_recovery_s: float | None
    heard: int
    missed: int


class Overseeing:
    """Looks into the services that it is given.

    :param checks: what the monitor has counted
    :param works: whether the monitor does its work
    :param counts: what was done about old and silent leases
    :param rules: the rules in force at this moment
    :param runs: what the monitor knows of the runs, by lease id
    :param guarded: the leases that the guard has let in
    :param members: the processes of those
    """

    def __init__(
        self,
        *,
        checks: Callable[[], Checks],
        works: Callable[[], bool],
        counts: Callable[[], Counts],
        rules: Callable[[], Rules],
        runs: Callable[[], Mapping[str, Reading]],
        guarded: Callable[[], Collection[str]],
        members: Runs,
        looks: CardLooks,
    ) -> None:
        self._checks = checks
        self._works = works
        self._counts = counts
        self._rules = rules
        self._runs = runs
        self._guarded = guarded
        self._members = members
        self._looks = looks
        self._gone_since: dict[str, float] = {}
        self._lived: set[str] = set()

    def __repr__(self) -> str:
        return f"<Overseeing {self._checks().total} checks>"

    def oversight(self) -> Oversight:
        """The monitor's counts now."""
        checks, counts = self._checks(), self._counts()
        return Oversight(
            is_running=self._rules().monitor.enabled,
            works=self._works(),
            started_s=checks.started_ms / 1000,
            last_check_s=_seconds(checks.last_ms),
            last_error=checks.last_error,
            checks=checks.total,
            healthy=checks.healthy,
            unhealthy=checks.unhealthy,
            warnings=counts.warning,
            softs=counts.soft,
            hards=counts.hard,
            recovered=counts.recovered,
            failed=counts.failed,
            last_recovery_s=_seconds(counts.last_recovery_ms),
            heard=checks.heard,
            missed=checks.missed,
        )

    def tasks(self, snapshot: Snapshot) -> Tasks:
        """The tasks of a snapshot by their condition; dead: no process of it lives."""
        runs = dict(self._runs())
        for id in self._gone(snapshot):
            runs[id] = msgspec.structs.replace(runs.get(id, Reading()), gone=True)
        return tasks_of(snapshot, Readings(runs=runs), self._rules())

    def heartbeats(self, snapshot: Snapshot) -> dict[str, HeartbeatRecord]:
        """What the tasks of a snapshot last said, by the ids of their tickets."""
        now_s = snapshot.at_ms / 1000
        holding = [lease for lease in snapshot.leases if lease.state in ("held", "member")]
        return {lease.id: heartbeat_record(lease, now_s) for lease in holding}

    def evidence(self, snapshot: Snapshot) -> dict[str, Evidence]:
        """What is seen of the leases' runs and cards."""
        now_s, gone = boottime_s(), self._gone(snapshot)
        self._gone_since = {id: self._gone_since.get(id, now_s) for id in gone}
        uuids = {record.gpu.key: record.gpu.uuid for record in snapshot.gpus}
        runs, seen = self._runs(), {}
        for lease in snapshot.leases:
            still_ms = runs[lease.id].idle_ms if lease.id in runs else None
            idle_s = [self._idle_s(uuids.get(key) or "") for key in lease.gpus]
            lives = 0.0 if lease.id in self._lived else None
            seen[lease.id] = Evidence(
                gone_s=now_s - self._gone_since[lease.id] if lease.id in gone else lives,
                still_s=None if still_ms is None else still_ms / 1000,
                card_idle_s=min((s for s in idle_s if s is not None), default=None) if None not in idle_s else None,
            )
        return seen

    def readings(self) -> Mapping[str, Sequence[CardReading]]:
        """The last readings of each card, by UUID."""
        return self._looks.history

    def _gone(self, snapshot: Snapshot) -> set[str]:
        """The leases that were let in here and of whose run no process lives, by what the monitor or the guard sees.

        One that never had a process is held by a connection from elsewhere: of that nothing can be gone.
        """
        runs, guarded = self._runs(), self._guarded()
        held = [lease.id for lease in snapshot.leases if lease.state == "held"]
        living = {id for id in held if id in guarded and self._members.members(id)}
        self._lived = living | self._lived.intersection(held)
        left = {id for id in self._lived if id in guarded and id not in living}
        return left | {id for id in held if runs.get(id, Reading()).gone}

    def _idle_s(self, uuid: str) -> float | None:
        """For how long a card has computed nothing, by its readings in a row (in seconds); None if it does not tell."""
        since_ms: int | None = None
        for reading in reversed(self._looks.history.get(uuid, ())):
            if reading.utilization is None or reading.utilization > 0:
                break
            since_ms = reading.at_ms
        latest = self._looks.history.get(uuid)
        if not latest or latest[-1].utilization is None:
            return None
        return 0.0 if since_ms is None else max(0.0, (wall_ms() - since_ms) / 1000)


def _seconds(at_ms: int | None) -> float | None:
    return None if at_ms is None else at_ms / 1000
