"""Where time is lost: the longest waits, cards that are held and idle, tasks by time, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gpulockd.events import Event, LockAcquired, LockExpired, LockReleased, LockRevoked
from gpulockd.ledger.statistics import TaskStatistics
from gpulockd.ledger.tally import Tally
from gpulockd.model import Snapshot, Wants
from gpulockd.web.overseeing import CardReading
from gpulockd.web.page.words import age, gpu_name, named, percent

MOST_WAITS = 5
MOST_TASKS = 8

IDLE_BELOW = 0.05
"""A card that is used less than that (a share of 1) while somebody holds it is idle."""

FEWEST_READINGS = 6
FEWEST_ATTEMPTS = 20
IDLE_TOLD = 0.3
TIMEOUTS_TOLD = 0.1
LONG_WAIT_S = 60.0
ROOMY = 0.4

Interval = tuple[float, float]


class LongWait(msgspec.Struct, frozen=True, kw_only=True):
    """A wait that was over when its lease began."""

    job: str
    gpus: str
    waited: str
    at_ms: int


class IdleCard(msgspec.Struct, frozen=True, kw_only=True):
    """How much of its holders' time a card did nothing, and how long it was held while it was looked at.

    `idle` and `memory` are shares of 1 (None: it does not say).
    """

    name: str
    held: str
    idle: float
    memory: float | None


class TaskTime(msgspec.Struct, frozen=True, kw_only=True):
    """A task's holds and attempts of the last day."""

    task: str
    holds: int
    p50: str
    p95: str
    total: str
    success: str


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `advice` is never empty."""

    waits: tuple[LongWait, ...]
    cards: tuple[IdleCard, ...]
    tasks: tuple[TaskTime, ...]
    advice: tuple[str, ...]


def performance(
    snapshot: Snapshot,
    events: Sequence[Event],
    readings: Mapping[str, Sequence[CardReading]],
    window: Tally,
    tasks: Mapping[str, TaskStatistics],
) -> Performance:
    """Judge the last day by its statistics, and the last minutes by what the cards said.

    :param events: the last ones, oldest first
    """
    cards = idle_cards(snapshot, events, readings)
    acquired = [event for event in events if isinstance(event, LockAcquired) and event.waited_ms]
    longest = sorted(acquired, key=lambda event: -(event.waited_ms or 0))[:MOST_WAITS]
    return Performance(
        waits=tuple(
            LongWait(
                job=named(event.task or "", event.task_id or ""),
                gpus=", ".join(map(gpu_name, event.gpus)),
                waited=age((event.waited_ms or 0) / 1000),
                at_ms=event.at_ms,
            )
            for event in longest
        ),
        cards=cards,
        tasks=_tasks(tasks),
        advice=_advice(snapshot, cards, window) or ("Nothing stands out.",),
    )


def idle_cards(
    snapshot: Snapshot, events: Sequence[Event], readings: Mapping[str, Sequence[CardReading]]
) -> tuple[IdleCard, ...]:
    """Return how idle each card was while it was held, as far as its readings reach back; of the others nothing."""
    found = []
    for record in snapshot.gpus:
        taken = readings.get(record.gpu.uuid or "", ())
        spans = _held(record.gpu.key, snapshot, events)
        held = [reading for reading in taken if any(begin <= reading.at_ms <= end for begin, end in spans)]
        used = [reading.utilization for reading in held if reading.utilization is not None]
        if len(used) < FEWEST_READINGS:
            continue
        memory = [one.used_mib / one.total_mib for one in held if one.used_mib is not None and one.total_mib]
        found.append(
            IdleCard(
                name=str(record.gpu),
                held=age(_seen_ms(spans, taken[0].at_ms, taken[-1].at_ms) / 1000),
                idle=sum(share < IDLE_BELOW for share in used) / len(used),
                memory=max(memory) if memory else None,
            )
        )
    return tuple(found)


def _held(key: str, snapshot: Snapshot, events: Sequence[Event]) -> list[Interval]:
    """Return when a gpu was held (wall clock, ms)."""
    ended: list[Interval] = [
        (event.at_ms - event.held_ms, float(event.at_ms))
        for event in events
        if isinstance(event, LockReleased | LockExpired | LockRevoked) and event.held_ms and key in event.gpus
    ]
    return ended + [(snapshot.at_ms - lease.held_ms, float("inf")) for lease in snapshot.leases if key in lease.gpus]


def _seen_ms(spans: Sequence[Interval], first_ms: float, last_ms: float) -> float:
    """Return how much of the time between two readings was within spans (ms); what overlaps counts once."""
    seen_ms, until_ms = 0.0, first_ms
    for begin, end in sorted(spans):
        begin_ms, end_ms = max(begin, until_ms), min(end, last_ms)
        seen_ms += max(0.0, end_ms - begin_ms)
        until_ms = max(until_ms, end_ms)
    return seen_ms


def _tasks(tasks: Mapping[str, TaskStatistics]) -> tuple[TaskTime, ...]:
    known = [(name, task.window) for name, task in tasks.items() if task.window.holds.count]
    known.sort(key=lambda one: -one[1].holds.sum_ms)
    return tuple(
        TaskTime(
            task=name or "somebody",
            holds=window.holds.count,
            p50=_quantile(window, 0.5),
            p95=_quantile(window, 0.95),
            total=age(window.holds.sum_ms / 1000),
            success=percent(window.success_rate),
        )
        for name, window in known[:MOST_TASKS]
    )


def _quantile(window: Tally, share: float) -> str:
    ms = window.holds.quantile_ms(share)
    return "" if ms is None else age(ms / 1000)


def _advice(snapshot: Snapshot, cards: Sequence[IdleCard], window: Tally) -> tuple[str, ...]:
    said = [
        f"{card.name} was idle for {percent(card.idle)} of the time that it was held: take the lock after loading "
        "data, and give it back before writing results."
        for card in cards
        if card.idle >= IDLE_TOLD
    ]
    if window.attempts >= FEWEST_ATTEMPTS and window.timeout_rate > TIMEOUTS_TOLD:
        said.append(
            f"{percent(window.timeout_rate)} of the attempts of the last day timed out: raise max_wait_time, "
            "or shorten holds."
        )
    p95_ms = window.waits.quantile_ms(0.95) or 0
    roomy = [card for card in cards if card.memory is not None and card.memory < ROOMY]
    if p95_ms > LONG_WAIT_S * 1000 and roomy:
        most = max(card.memory or 0 for card in roomy)
        said.append(
            f"One wait in twenty takes over {age(p95_ms / 1000)}, and at most {percent(most)} of the memory is used: "
            'let small tasks share a card, gpu_lock(memory="8GiB").'
        )
    places = [Wants.parse(one.wants).keys for one in snapshot.queue]
    unusable = [
        str(record.gpu)
        for record in snapshot.gpus
        if record.state not in ("ready", "settling") and any(not keys or record.gpu.key in keys for keys in places)
    ]
    if unusable:
        said.append(f"Some wait who could use {', '.join(unusable)}, which cannot be used now: resume what is well.")
    return tuple(said)
