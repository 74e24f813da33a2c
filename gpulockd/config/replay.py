"""What proposed limits would have done to the holds and waits that are on record: the dry run of a change.

Its law: it says no more than the record does. Distributions know how long something took only to within a bucket, so
what may lie on either side of a limit makes a range; the latest events are known to the millisecond and narrow it.
Limits that a job has set for itself are not on record, so only what lies between the present and the proposed limit
counts.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from gpulockd.config.queueing import Replay, replay
from gpulockd.config.sides import quantile_s
from gpulockd.events import Event, LockAcquired, LockReleased
from gpulockd.ledger.distribution import ENDS_MS, Distribution
from gpulockd.ledger.tally import Tally
from gpulockd.settings import Settings

POLLS = ("poll_interval", "max_poll_interval", "exponential_backoff")

NO_REACH = (
    "it changes no limit of holds or waits, so the record cannot say what it would have done; 'gpulockd bench config' "
    "tries it"
)

NAMED = 5
"""So many tasks are named in the text."""


class Range(msgspec.Struct, frozen=True):
    """How many: at least, at most."""

    least: int = 0
    most: int = 0

    def __str__(self) -> str:
        return f"{self.least:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"

    def __add__(self, other: Range) -> Range:
        return Range(self.least + other.least, self.most + other.most)


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is on record of one task: its tally, and of its latest holds and waits the exact lengths (ms)."""

    tally: Tally
    released_ms: Sequence[int] = ()
    waits_ms: Sequence[int] = ()


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What would have been. Times in seconds; `since` and `until` are unix seconds.

    `stopped`: holds that would have been ended by the hard limit and were not, `timed_out`: waits that got the lock and
    would not have, `waited_on`: waits that timed out and would have gone on. `wait_p95` is what is on record,
    `wait_p95_replayed` of the last `replayed` waits with the holds as they would have been.
    """

    since: float
    until: float
    holds: int
    waits: int
    stopped: Range
    stopped_tasks: dict[str, Range]
    timed_out: Range
    timed_out_tasks: dict[str, Range]
    waited_on: int
    wait_p95: float | None
    wait_p95_recent: float | None
    wait_p95_replayed: float | None
    replayed: int
    text: str
    notes: tuple[str, ...]


def replayed(
    *,
    present: Settings,
    proposed: Settings,
    record: Mapping[str, TaskRecord],
    recent: Sequence[Event] = (),
    since_ms: int,
    until_ms: int,
) -> Replayed:
    """Replay proposed settings against what is on record from `since_ms` to `until_ms` (wall clock).

    :param recent: the latest events of the pool, oldest first: the queue is played through with them
    """
    stopped = {task: _stopped(one, task, present, proposed) for task, one in record.items()}
    timed_out = {task: _timed_out(one, task, present, proposed) for task, one in record.items()}
    waits, holds, waited_on = Distribution(), 0, 0
    for task, one in record.items():
        waits.take_in(one.tally.waits)
        holds += one.tally.holds.count
        longer = max_wait_ms(proposed, task) > max_wait_ms(present, task)
        waited_on += one.tally.of("timed_out") if longer else 0
    played = replay(
        recent,
        hard_ms=lambda task: _lowered(hard_ms, task, present, proposed),
        max_wait_ms=lambda task: _lowered(max_wait_ms, task, present, proposed),
    )
    found = Replayed(
        since=since_ms / 1000,
        until=until_ms / 1000,
        holds=holds,
        waits=waits.count,
        stopped=sum(stopped.values(), Range()),
        stopped_tasks=_some(stopped),
        timed_out=sum(timed_out.values(), Range()),
        timed_out_tasks=_some(timed_out),
        waited_on=waited_on,
        wait_p95=quantile_s(waits, 0.95),
        wait_p95_recent=played.before_p95_s,
        wait_p95_replayed=played.after_p95_s,
        replayed=played.waits,
        text="",
        notes=(),
    )
    reaches = _changes_limits(present, proposed, record)
    notes = [*(_notes(found, played) if reaches else ())]
    if _polls(present) != _polls(proposed):
        notes.append("poll settings count only while programs are cut off from notifications; no record tells of that")
    return msgspec.structs.replace(found, text=_text(found) if reaches else NO_REACH, notes=tuple(notes))


def _changes_limits(present: Settings, proposed: Settings, tasks: Iterable[str]) -> bool:
    """Whether any limit differs by which a recorded hold or wait would have ended otherwise."""
    limits = (hard_ms, max_wait_ms)
    return any(limit(present, task) != limit(proposed, task) for limit in limits for task in (*tasks, ""))


def _polls(settings: Settings) -> list[list[object]]:
    blocks = (settings.gpu_lock, *settings.tasks.values())
    return [[getattr(block, name, None) for name in POLLS] for block in blocks]


def record_of(tallies: Mapping[str, Tally], recent: Sequence[Event]) -> dict[str, TaskRecord]:
    """Return what is on record by task, from tallies and the latest events, which the tallies have counted too."""
    released: dict[str, list[int]] = {}
    waits: dict[str, list[int]] = {}
    for event in recent:
        if isinstance(event, LockReleased) and event.held_ms is not None:
            released.setdefault(event.task or "", []).append(event.held_ms)
        elif isinstance(event, LockAcquired) and event.waited_ms is not None:
            waits.setdefault(event.task or "", []).append(event.waited_ms)
    return {
        task: TaskRecord(tally=tally, released_ms=released.get(task, ()), waits_ms=waits.get(task, ()))
        for task, tally in tallies.items()
    }


def hard_ms(settings: Settings, task: str) -> float:
    """Return the hard limit of a task (in ms); infinite where nobody is stopped."""
    monitor = settings.gpu_lock_monitor
    if not (monitor.enabled and monitor.auto_recovery):
        return math.inf
    own = settings.tasks[task].hard_timeout if task in settings.tasks else None
    return 1000 * (monitor.timeout_levels.hard_timeout if own is None else own)


def max_wait_ms(settings: Settings, task: str) -> float:
    """Return the wait limit of a task (in ms)."""
    own = settings.tasks[task].max_wait_time if task in settings.tasks else None
    return 1000 * (settings.gpu_lock.max_wait_time if own is None else own)


def over(durations: Distribution, limit_ms: float, exact_ms: Sequence[int] = ()) -> Range:
    """Return how many took longer than a limit (ms).

    :param exact_ms: those of them that are known exactly
    """
    if durations.count == 0 or durations.most_ms <= limit_ms:
        return Range()
    if durations.least_ms > limit_ms:
        return Range(durations.count, durations.count)
    bucket = min(bisect_left(ENDS_MS, math.floor(limit_ms)), len(ENDS_MS) - 1)
    above = sum(count for one, count in durations.buckets.items() if one > bucket)
    split = durations.buckets.get(bucket, 0)
    if ENDS_MS[bucket] <= limit_ms and bucket < len(ENDS_MS) - 1:
        return Range(above, above)  # the limit is the bucket's own end
    known = [ms for ms in exact_ms if bisect_left(ENDS_MS, ms) == bucket]
    longer = min(split, sum(ms > limit_ms for ms in known))
    shorter = min(split - longer, len(known) - sum(ms > limit_ms for ms in known))
    return Range(above + longer, above + split - shorter)


def _lowered(limit_ms: Callable[[Settings, str], float], task: str, present: Settings, proposed: Settings) -> float:
    """Return the proposed limit (in ms) where it is lower than the present one, else infinity."""
    then_ms = limit_ms(proposed, task)
    return then_ms if then_ms < limit_ms(present, task) else math.inf


def _stopped(record: TaskRecord, task: str, present: Settings, proposed: Settings) -> Range:
    """Holds that their programs released between the proposed and the present limit."""
    now_ms, then_ms = hard_ms(present, task), hard_ms(proposed, task)
    if then_ms >= now_ms:
        return Range()
    tally = record.tally
    found = _between(tally.holds, then_ms, now_ms, record.released_ms)
    lost = tally.recoveries
    released = max(0, tally.holds.count - lost)
    surely = sum(then_ms < ms <= now_ms for ms in record.released_ms)
    most = max(surely, min(found.most, released))
    return Range(min(most, max(surely, found.least - lost)), most)


def _timed_out(record: TaskRecord, task: str, present: Settings, proposed: Settings) -> Range:
    """Waits that got the lock between the proposed and the present limit."""
    now_ms, then_ms = max_wait_ms(present, task), max_wait_ms(proposed, task)
    if then_ms >= now_ms:
        return Range()
    return _between(record.tally.waits, then_ms, now_ms, record.waits_ms)


def _between(durations: Distribution, from_ms: float, to_ms: float, exact_ms: Sequence[int]) -> Range:
    longer, beyond = over(durations, from_ms, exact_ms), over(durations, to_ms, exact_ms)
    return Range(max(0, longer.least - beyond.most), max(0, longer.most - beyond.least))


def _some(ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return those that are not nothing, the most first."""
    found = {task: one for task, one in ranges.items() if one.most}
    return dict(sorted(found.items(), key=lambda item: (-item[1].most, item[0])))


def _named(tasks: Mapping[str, Range]) -> str:
    shown = [f"{task} {one}" for task, one in list(tasks.items())[:NAMED]]
    more = len(tasks) - len(shown)
    return f" ({', '.join(shown)}{f', and {more} more tasks' if more > 0 else ''})" if shown else ""


def _text(found: Replayed) -> str:
    parts = [
        f"{_count(found.stopped, 'hold')} would have been stopped that {_were(found.stopped)} not"
        + _named(found.stopped_tasks),
        f"{_count(found.timed_out, 'wait')} would have timed out that did not{_named(found.timed_out_tasks)}",
    ]
    if found.waited_on:
        parts.append(f"{found.waited_on:,} that timed out would have waited on")
    if found.wait_p95_recent is not None and found.wait_p95_replayed is not None:
        parts.append(
            f"p95 wait {found.wait_p95_recent:.3g} s → ~{found.wait_p95_replayed:.3g} s "
            f"(replayed with the last {found.replayed:,} waits)"
        )
    return "; ".join(parts)


def _count(range: Range, noun: str) -> str:
    return f"{range} {noun}" if range == Range(1, 1) else f"{range} {noun}s"


def _were(range: Range) -> str:
    return "was" if range == Range(1, 1) else "were"


def _notes(found: Replayed, played: Replay) -> tuple[str, ...]:
    notes = []
    if not found.holds and not found.waits:
        notes.append("nothing is on record of that time, so nothing can be said")
    if any(one.least != one.most for one in (found.stopped, found.timed_out)):
        notes.append("ranges: older holds and waits are on record only to within a fifth of their length")
    if found.waited_on:
        notes.append("nobody knows whether those that timed out would have got the lock")
    if found.holds or found.waits:
        notes.append(
            "jobs with limits of their own go by those, whatever the settings say; the record does not name them"
        )
    if played.after_p95_s is not None:
        notes.append("the replay leaves every job on the GPUs that it had")
    return tuple(notes)
