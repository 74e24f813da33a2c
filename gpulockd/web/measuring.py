"""`GET /metrics`: one look at the pool and one at its statistics, at most once a second, however many scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import anyio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.responses import Response

from gpulockd.errors import GpuLockError
from gpulockd.ledger.distribution import ENDS_MS, Distribution
from gpulockd.ledger.tally import PLANNED, Tally
from gpulockd.model import GpuRecord, Snapshot
from gpulockd.web.backend import Backend
from gpulockd.web.known import Known
from gpulockd.web.metrics import MEDIA
from gpulockd.web.overall import overall
from gpulockd.web.overseeing import CardReading, Oversees
from gpulockd.web.system import dead_of, health_score, suspected
from gpulockd.web.table import Visit

FRESH_S = 1.0
MIB = 1024 * 1024

_LIMITS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)

BUCKETS = tuple(max(i for i, end_ms in enumerate(ENDS_MS) if end_ms <= limit_s * 1000) for limit_s in _LIMITS_S)
"""Which buckets of a distribution end a bucket here: their ends are exact, so the counts are."""

_LOST = ("lock_expired:", "lock_revoked:")
_STATES = ("ready", "settling", "quarantined", "drained", "lost")


async def metrics(visit: Visit) -> Response:
    """All metrics in Prometheus's text format; with the store away, those that this process knows itself."""
    made = visit.backend.metrics
    async with made.making:
        if anyio.current_time() - made.made_at_s > FRESH_S:
            began_s = anyio.current_time()
            made.text = made.written(await _gathered(visit.backend))
            made.made_at_s = began_s
    return Response(made.text, media_type=MEDIA, headers={"cache-control": "no-store"})


async def _gathered(backend: Backend) -> list[Metric]:
    found: list[Metric] = [
        _gauge("build_info", "The version that runs; always 1.", [(("version", backend.version),)], [1.0]),
        *_of_wakeups(backend),
    ]
    if backend.oversees is not None:
        found += [*_of_monitor(backend.oversees)]
    if backend.configuring is not None:
        revision = backend.configuring.state.current
        found.append(_one("config_revision", "The revision in force here.", revision.number if revision else 0))
    try:
        snapshot, known = await backend.look(), await backend.known()
        status = await overall(backend, snapshot, known)
        suspicions = suspected(backend, snapshot)
        dead = len(dead_of(suspicions))
        if backend.connections is not None:
            said = "Connections that the store has open, of all clients."
            found.append(_one("redis_connections", said, await backend.connections()))
    except GpuLockError:
        return [*found, _one("store_up", "Whether the store answers.", 0)]
    found += [
        _one("store_up", "Whether the store answers.", 1),
        *_of_statistics(known),
        *_of_snapshot(snapshot),
        _one("health_score", "The health of the pool, 0 to 100.", health_score(known, suspicions).score),
        _one("deadlocks_suspected", "Leases that look dead.", dead),
        _one("idle_holders", "Holders whose card does nothing while others wait.", len(suspicions) - dead),
        _by("alerts_active", "Alerts that stand.", "level", {"warning": 0, "critical": 0} | status.levels),
    ]
    if backend.oversees is not None:
        found += [*_of_cards(snapshot, backend.oversees)]
    return found


def _of_statistics(known: Known) -> Iterator[Metric]:
    total = known.total
    outcomes = {word: total.of(word) for word in ("acquired", "timed_out", "failed", "withdrawn")}
    yield _counter("requests", "Requests by how they ended.", "outcome", outcomes)
    yield _histogram("wait", "How long those waited who got their gpus.", total.waits)
    yield _histogram("hold", "How long leases were held.", total.holds)
    yield _counter("limits_reached", "Leases that reached an age limit.", "level", total.limits_reached)
    yield _counter("leases_lost", "Leases that ended without their holder.", "reason", _lost(total))
    recovered = max(0, total.recoveries - total.failed_recoveries)
    outcomes = {"success": recovered, "failed": total.failed_recoveries}
    yield _counter("recoveries", "Leases that were ended for their holder, by what became of it.", "outcome", outcomes)
    yield _counter("cleanups", "What was cleared away after somebody.", "kind", total.cleanups)
    yield CounterMetricFamily("gpulockd_events_missed", "Events that are counted nowhere.", value=known.missed)


def _lost(total: Tally) -> dict[str, int]:
    lost: dict[str, int] = {"died": 0, "expired": 0, "hard_timeout": 0, "operator": 0, "silent": 0, "gpu_lost": 0}
    for word, count in total.counts.items():
        if word.startswith(_LOST):
            reason = word.partition(":")[2]
            if reason == PLANNED:
                continue
            lost[reason] = lost.get(reason, 0) + count
    return lost


def _of_snapshot(snapshot: Snapshot) -> Iterator[Metric]:
    oldest_ms = max((ticket.waited_ms for ticket in snapshot.queue), default=0)
    yield _one("queue_length", "How many wait.", snapshot.queued)
    yield _one("oldest_wait_seconds", "How long the first of the queue has waited at most.", oldest_ms / 1000)
    yield _one("leases", "Leases that stand.", sum(lease.state in ("held", "claim") for lease in snapshot.leases))
    yield _one("sessions", "Programs that are alive in the pool.", snapshot.sessions)
    offered = [record for record in snapshot.gpus if record.offered]
    states = {state: sum(record.state == state for record in offered) for state in _STATES}
    yield _by("gpus", "Offered gpus.", "state", states)
    rows = [(("gpu", name_of(record)),) for record in snapshot.gpus]
    busy = [float(record.exclusive is not None or record.shared > 0) for record in snapshot.gpus]
    yield _gauge("held", "Whether somebody holds a gpu.", rows, busy)
    yield _one("busy_ratio", "The share of the offered gpus that somebody holds.", _share(offered))
    yield _one("frozen", "Whether nothing is granted, since the store may have lost data.", snapshot.frozen_ms > 0)


def _share(offered: list[GpuRecord]) -> float:
    busy = sum(record.exclusive is not None or record.shared > 0 for record in offered)
    return busy / len(offered) if offered else 0.0


def _of_monitor(oversees: Oversees) -> Iterator[Metric]:
    seen = oversees.oversight()
    yield _one("monitor_up", "Whether the monitor does its work.", seen.is_running and seen.works)
    checks = {"healthy": seen.healthy, "unhealthy": seen.unhealthy}
    yield _counter("checks", "Full checks of locks, heartbeats and cards.", "result", checks)
    beats = {"heard": seen.heard, "missed": seen.missed}
    yield _counter("heartbeats", "Tasks at full checks: heard of in time, or not.", "outcome", beats)


def _of_wakeups(backend: Backend) -> Iterator[Metric]:
    told = {"doorbell": 0, "poll": 0} | backend.metrics.heard.wakeups
    yield _counter("wakeups", "Waiters that got their gpus, by what told them.", "via", told)


def _of_cards(snapshot: Snapshot, oversees: Oversees) -> Iterator[Metric]:
    readings = oversees.readings()
    latest = [(record, readings[uuid][-1]) for record in snapshot.gpus if readings.get(uuid := record.gpu.uuid or "")]
    told: tuple[tuple[str, str, Callable[[CardReading], float | None], int], ...] = (
        ("gpu_memory_used_bytes", "Memory in use.", lambda r: r.used_mib, MIB),
        ("gpu_memory_total_bytes", "Memory that there is.", lambda r: r.total_mib, MIB),
        ("gpu_utilization_ratio", "How busy the card is, 0 to 1.", lambda r: r.utilization, 1),
        ("gpu_temperature_celsius", "How warm the card is.", lambda r: r.temperature_c, 1),
        ("gpu_power_watts", "What the card draws.", lambda r: r.power_w, 1),
    )
    for name, says, value_of, unit in told:
        known = [(record, value) for record, reading in latest if (value := value_of(reading)) is not None]
        rows = [(("gpu", name_of(record)), ("uuid", record.gpu.uuid or "")) for record, _ in known]
        yield _gauge(name, says, rows, [value * unit for _, value in known], labels=("gpu", "uuid"))


def name_of(record: GpuRecord) -> str:
    """Return what a gpu is called in labels: its index, or the key of a slot without hardware."""
    return record.gpu.key if record.gpu.index is None else str(record.gpu.index)


Row = tuple[tuple[str, str], ...]


def _gauge(
    name: str, says: str, rows: Sequence[Row], values: Sequence[float], *, labels: tuple[str, ...] | None = None
) -> GaugeMetricFamily:
    named = labels or tuple(label for label, _ in rows[0]) if rows else labels or ("gpu",)
    family = GaugeMetricFamily(f"gpulockd_{name}", says, labels=named)
    for row, value in zip(rows, values, strict=True):
        family.add_metric([word for _, word in row], value)
    return family


def _one(name: str, says: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gpulockd_{name}", says, value=float(value))


def _by(name: str, says: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    return _gauge(name, says, [((label, word),) for word in values], [float(value) for value in values.values()])


def _counter(name: str, says: str, label: str, values: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"gpulockd_{name}", says, labels=(label,))
    for word, value in values.items():
        family.add_metric([word], float(value))
    return family


def _histogram(name: str, says: str, of: Distribution) -> HistogramMetricFamily:
    below = [sum(count for bucket, count in of.buckets.items() if bucket <= last) for last in BUCKETS]
    rows = [(str(ENDS_MS[last] / 1000), float(count)) for last, count in zip(BUCKETS, below, strict=True)]
    rows.append(("+Inf", float(of.count)))
    return HistogramMetricFamily(f"gpulockd_{name}_seconds", says, buckets=rows, sum_value=of.sum_ms / 1000)
