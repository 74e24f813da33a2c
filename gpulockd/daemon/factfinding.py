"""The facts of the own pool: looked up where they stand, for the rules of alerts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gpulockd.alerting import facts
from gpulockd.alerting.expression import Value
from gpulockd.alerting.facts import Seen
from gpulockd.clock import boottime_s
from gpulockd.daemon.judging import Reading
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.alerts import Stored
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import Ask, UnreadableError
from gpulockd.ledger.statistics import Statistics
from gpulockd.ledger.suspicions import Evidence, Patience, Suspicion, suspicions
from gpulockd.model import Snapshot
from gpulockd.settings import Settings

Sees = Callable[[Snapshot], Mapping[str, Evidence]]
"""What is seen of the runs and cards of a snapshot's leases, by lease id."""


class FactFinder:
    """Looks at one pool. It remembers since when holders are gone, and the store's CPU time.

    :param monitor: whether the monitor does its work
    :param readings: what is known of the runs, by lease id
    :param evidence: what is seen of leases' runs and cards; None: only the readings say
    """

    def __init__(
        self,
        keys: PoolKeys,
        ask: Ask,
        *,
        monitor: Callable[[], bool],
        readings: Callable[[], Mapping[str, Reading]],
        evidence: Sees | None = None,
    ) -> None:
        self._keys = keys
        self._ask = ask
        self._monitor = monitor
        self._readings = readings
        self._evidence = evidence
        self._gone_since: dict[str, float] = {}
        self._cpu: tuple[int, float] | None = None

    async def look(self, stored: Stored, settings: Settings) -> Seen | None:
        """Return what is true of the pool now; None if it has no books.

        :raises StoreUnavailable: if the store is away
        """
        asked_s = boottime_s()
        answer = await self._ask(verbs.snapshot(self._keys))
        roundtrip_s = boottime_s() - asked_s
        if not isinstance(answer, a.Pictured):
            return None
        snapshot = answer.snapshot
        found = self._suspicions(snapshot, settings.gpu_lock_monitor.heartbeat.timeout)
        values: dict[str, Value] = {
            "monitor_health": self._monitor(),
            "redis_roundtrip": roundtrip_s,
            "redis_cpu": self._redis_cpu(stored),
        }
        about: dict[str, str] = {}
        for more, said in (facts.of_snapshot(snapshot), facts.of_suspicions(found)):
            values |= more
            about |= said
        block = settings.alerts
        try:
            read = await Statistics.read(self._ask, self._keys, since_s=block.window, by="minute", tasks=())
        except UnreadableError:
            return Seen(values=values, about=about)
        held = sum(lease.state == "held" for lease in snapshot.leases)
        dead = sum(one.kind != "idle" for one in found)
        values |= facts.of_window(read.window, read.book.recent, dead, held, block.least_samples)
        return Seen(values=values, about=about)

    def _suspicions(self, snapshot: Snapshot, silent_s: float) -> tuple[Suspicion, ...]:
        seen = self._of_readings(snapshot) if self._evidence is None else self._evidence(snapshot)
        return suspicions(snapshot, seen, Patience(silent_s=silent_s))

    def _of_readings(self, snapshot: Snapshot) -> dict[str, Evidence]:
        now_s, living = boottime_s(), {lease.id for lease in snapshot.leases}
        readings = {id: reading for id, reading in self._readings().items() if id in living}
        gone = [id for id, reading in readings.items() if reading.gone]
        self._gone_since = {id: self._gone_since.get(id, now_s) for id in gone}
        seen = {}
        for id, reading in readings.items():
            idle_s = None if reading.idle_ms is None else reading.idle_ms / 1000
            gone_s = now_s - self._gone_since[id] if reading.gone else 0.0 if reading.gone is False else None
            seen[id] = Evidence(gone_s=gone_s, still_s=idle_s, card_idle_s=idle_s)
        return seen

    def _redis_cpu(self, stored: Stored) -> float | None:
        """The store's share of one core since the last look."""
        before = self._cpu
        self._cpu = None if stored.cpu_s is None else (stored.wall_ms, stored.cpu_s)
        if before is None or self._cpu is None:
            return None
        passed_s, used_s = (self._cpu[0] - before[0]) / 1000, self._cpu[1] - before[1]
        return used_s / passed_s if passed_s > 0 and used_s >= 0 else None
