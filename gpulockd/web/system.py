"""All statistics in one answer as the source documents have it, and the same over any window, with distributions."""

from __future__ import annotations

from gpulockd.ledger.distribution import Distribution
from gpulockd.ledger.health import Health, health
from gpulockd.ledger.statistics import Span, Statistics, TaskStatistics
from gpulockd.ledger.suspicions import Patience, Suspicion, suspicions
from gpulockd.ledger.tally import Tally
from gpulockd.model import DEFAULT_KEY, Snapshot
from gpulockd.units import parse_duration_s
from gpulockd.web import monitoring_views as documented
from gpulockd.web import past_views as views
from gpulockd.web.backend import Backend
from gpulockd.web.beats import heartbeats_of
from gpulockd.web.known import Known
from gpulockd.web.monitoring import health_of
from gpulockd.web.overall import overall
from gpulockd.web.overseen import monitor_of, timeouts_of
from gpulockd.web.problems import refusal
from gpulockd.web.table import Visit

DAY_S = 86_400.0


async def system_statistics(visit: Visit) -> documented.SystemStatistics:
    """The lock, the monitor, the heartbeats, the limits and the tasks."""
    backend = visit.backend
    snapshot, known, events = await backend.look(), await backend.known(), await backend.events()
    found = suspected(backend, snapshot)
    return documented.SystemStatistics(
        timestamp=snapshot.at_ms / 1000,
        gpu_lock=health_of(DEFAULT_KEY, snapshot, known, await overall(backend, snapshot, known)),
        monitor=monitor_of(backend),
        heartbeat=heartbeats_of(backend, snapshot, known, events),
        timeout=timeouts_of(backend, events),
        health_score=health_score(known, found).score,
        deadlock_detected=bool(dead_of(found)),
        suspicions=tuple(_suspected(one) for one in found),
        waits=spread(known.total.waits),
        holds=spread(known.total.holds),
        tasks={name: task_facts(task) for name, task in known.tasks.items()},
    )


async def statistics(visit: Visit) -> views.StatisticsView:
    """What was in the last `since`, by minute or hour, by task, and how long waits and holds took.

    :raises ProblemError: 422 for a `by` that is neither
    """
    backend, by = visit.backend, visit.request.query_params.get("by", "hour")
    if by not in ("minute", "hour"):
        raise refusal(422, "invalid", f"by={by[:40]!r}", "say minute or hour")
    since_s = parse_duration_s(visit.request.query_params.get("since", DAY_S), "since")
    task = visit.request.query_params.get("task")
    snapshot, known = await backend.look(), await backend.known()
    found = suspected(backend, snapshot)
    read = await Statistics.read(
        backend.ask,
        backend.keys,
        since_s=since_s,
        by="minute" if by == "minute" else "hour",
        tasks=None if task is None else (task,),
    )
    scored = health_score(known, found)
    of_task = read.tasks[task].window if task in read.tasks else Tally()
    window = read.window if task is None else of_task
    return views.StatisticsView(
        pool=backend.pool,
        from_=read.from_ms / 1000,
        to=read.to_ms / 1000,
        task=task,
        window=_counts(window),
        waits=_histogram(window.waits),
        holds=_histogram(window.holds),
        spans=None if task is not None else tuple(_span(span) for span in read.spans),
        tasks={name: task_facts(one) for name, one in read.tasks.items()},
        health_score=scored.score,
        health_parts=tuple(
            views.HealthPart(name=part.name, value=part.value, weight=part.weight, points=part.points)
            for part in scored.parts
        ),
        deadlock_detected=bool(dead_of(found)),
        suspicions=tuple(_suspected(one) for one in found),
        missed_events=read.missed,
    )


def suspected(backend: Backend, snapshot: Snapshot) -> tuple[Suspicion, ...]:
    """Return what looks dead, by what the ledger says and the daemon sees."""
    if backend.oversees is None:
        return ()
    silent_s = backend.settings.gpu_lock_monitor.heartbeat.timeout
    return suspicions(snapshot, backend.oversees.evidence(snapshot), Patience(silent_s=silent_s))


def dead_of(found: tuple[Suspicion, ...]) -> tuple[Suspicion, ...]:
    """Return those that are locks; an idle card is only a pity."""
    return tuple(one for one in found if one.kind != "idle")


def health_score(known: Known, found: tuple[Suspicion, ...]) -> Health:
    """Return the score of the last minutes."""
    return health(known.window, known.recent, len(dead_of(found)))


def spread(of: Distribution) -> documented.Spread:
    """Return the mean and the quantiles of a distribution (in seconds)."""
    return documented.Spread(
        count=of.count,
        mean_s=_s(of.mean_ms),
        p50_s=_s(of.quantile_ms(0.5)),
        p95_s=_s(of.quantile_ms(0.95)),
        p99_s=_s(of.quantile_ms(0.99)),
        longest_s=_s(of.most_ms if of.count else None),
    )


def task_facts(task: TaskStatistics) -> documented.TaskFacts:
    """Return what is known of a task."""
    window = task.window
    return documented.TaskFacts(
        attempts=window.attempts,
        success_rate=window.success_rate,
        timeouts=window.of("timed_out"),
        failures=window.of("failed"),
        lost=window.lost,
        waits=spread(window.waits),
        holds=spread(window.holds),
        last_seen=task.last_ms / 1000,
    )


def _histogram(of: Distribution) -> views.Histogram:
    rows = tuple(views.Bucket(le_s=end_ms / 1000, count=count) for end_ms, count in of.up_to())
    return views.Histogram(spread=spread(of), buckets=rows)


def _span(span: Span) -> views.SpanView:
    return views.SpanView(at=span.at_ms / 1000, counts=_counts(span.tally))


def _counts(tally: Tally) -> views.Counts:
    return views.Counts(
        attempts=tally.attempts,
        acquired=tally.of("acquired"),
        timed_out=tally.of("timed_out"),
        failed=tally.of("failed"),
        withdrawn=tally.of("withdrawn"),
        released=tally.of("lock_released") + tally.planned_ends,
        lost=tally.lost,
        wait_s=tally.waits.sum_ms / 1000,
        hold_s=tally.holds.sum_ms / 1000,
    )


def _suspected(one: Suspicion) -> documented.Suspected:
    return documented.Suspected(
        kind=one.kind, lease=one.lease, task=one.task, gpus=one.gpus, for_s=one.for_s, waiting=one.waiting, why=one.why
    )


def _s(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
