"""Counting: distributions, tallies, what the recorder would write, and the health score."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpulockd import events
from gpulockd.daemon.recording import Recording
from gpulockd.events import Event
from gpulockd.ledger.distribution import ENDS_MS, ERROR, LONGEST_MS, Distribution
from gpulockd.ledger.health import AIMS, health
from gpulockd.ledger.recorded import (
    DAY_MS,
    HOUR_MS,
    MOST_TASKS,
    RECENT_HOLDS,
    WHOLE,
    Batch,
    Book,
    Recorded,
    TaskBook,
    day_name,
    encode,
    hour_name,
    read_book,
    read_tallies,
    read_tasks,
)
from gpulockd.ledger.tally import (
    MOST_WORDS,
    Facts,
    Tally,
    outcome,
    recent_success_rate,
    recent_timeout_rate,
    recent_with,
)
from gpulockd.model import PoolClock

NOW_MS = 1_795_000_000_000

durations_ms = st.lists(st.integers(0, LONGEST_MS), max_size=60)
CLOCK = PoolClock(epoch="e", ttl_ms=1, step_ms=1, keepalive_ms=1)


def acquired(seq: int, task: str = "t", waited_ms: int = 5, at_ms: int = NOW_MS) -> Event:
    """A lease that began."""
    return events.LockAcquired(seq=seq, at_ms=at_ms, pool="p", task=task, waited_ms=waited_ms, token=seq)


def released(seq: int, task: str = "t", held_ms: int = 70, at_ms: int = NOW_MS) -> Event:
    """A lease that was given back."""
    return events.LockReleased(seq=seq, at_ms=at_ms, pool="p", task=task, held_ms=held_ms, reason="released")


def page_of(some: list[Event], *, added: int, length: int, first: int | None) -> Recorded:
    """A page of the stream as the store answers it."""
    rows = tuple((event.seq, msgspec.json.encode(event)) for event in some)
    return Recorded(clock=CLOCK, now_ms=0, wall_ms=NOW_MS, added=added, length=length, first=first, events=rows)


# distributions


def test_buckets_are_at_most_a_fifth_wide_and_count_every_millisecond_once() -> None:
    """The stated error of quantiles rests on it."""
    assert list(ENDS_MS) == sorted(set(ENDS_MS))
    assert ENDS_MS[0] == 0 and ENDS_MS[-1] >= LONGEST_MS
    assert all(high <= max(low + 1, low * 1.2) for low, high in pairwise(ENDS_MS))
    assert len(ENDS_MS) < 130


@given(durations_ms, durations_ms)
def test_merged_distributions_are_those_of_all_values(some: list[int], others: list[int]) -> None:
    """Minutes add up to hours, hours to days."""
    merged = Distribution.of(some)
    merged.take_in(Distribution.of(others))
    assert merged == Distribution.of(some + others)
    swapped = Distribution.of(others)
    swapped.take_in(Distribution.of(some))
    assert swapped == merged


@given(st.lists(st.integers(1, LONGEST_MS), min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_quantiles_are_within_the_stated_error(values: list[int], share: float) -> None:
    """A median that is 9.6 % off is said to be so."""
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    estimated = Distribution.of(values).quantile_ms(share)
    assert estimated is not None
    assert abs(estimated - exact) <= ERROR * exact + 1e-6


@given(durations_ms)
def test_distributions_survive_the_store(values: list[int]) -> None:
    """What is read back is what was written."""
    distribution = Distribution.of(values)
    assert msgspec.json.decode(msgspec.json.encode(distribution), type=Distribution) == distribution
    assert sum(distribution.buckets.values()) == distribution.count == len(values)
    assert distribution.up_to() == tuple(sorted(distribution.up_to()))


def test_nothing_counted_has_no_mean_and_no_quantile() -> None:
    """Zero would read as a very fast lock."""
    empty = Distribution()
    assert empty.mean_ms is None and empty.quantile_ms(0.5) is None and empty.up_to() == ()


def test_what_takes_longer_than_a_week_is_counted_and_its_maximum_is_exact() -> None:
    """A month of waiting must not vanish."""
    month_ms = 30 * DAY_MS
    assert Distribution.of([month_ms]).quantile_ms(0.5) == month_ms


# tallies


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (events.LockAcquired(seq=1, at_ms=1, pool="p", waited_ms=0), "acquired"),
        (events.WaitTimedOut(seq=1, at_ms=1, pool="p", reason="timed_out"), "timed_out"),
        (events.WaitTimedOut(seq=1, at_ms=1, pool="p", reason="timed_out", held_ms=3), None),
        (events.WaitAbandoned(seq=1, at_ms=1, pool="p", reason="timed_out", held_ms=3), "timed_out"),
        (events.WaitAbandoned(seq=1, at_ms=1, pool="p", reason="abandoned"), "withdrawn"),
        (events.WaitAbandoned(seq=1, at_ms=1, pool="p", reason="released", held_ms=3), "withdrawn"),
        (events.WaitAbandoned(seq=1, at_ms=1, pool="p", reason="died"), "failed"),
        (events.LockRequested(seq=1, at_ms=1, pool="p"), None),
        (events.LockReleased(seq=1, at_ms=1, pool="p", reason="released"), None),
    ],
)
def test_an_attempt_has_one_outcome(event: Event, expected: str | None) -> None:
    """A request granted at once is an attempt too, and a timeout counts once."""
    assert outcome(event) == expected


def test_before_any_attempt_success_is_whole_and_nothing_timed_out() -> None:
    """A fresh system is healthy (documented)."""
    tally = Tally()
    assert (tally.attempts, tally.success_rate, tally.timeout_rate, tally.heartbeat_failure_rate) == (0, 1.0, 0.0, 0.0)
    assert (recent_success_rate(""), recent_timeout_rate("")) == (1.0, 0.0)


def test_recent_rates_look_at_the_last_twenty_attempts_and_not_at_withdrawn_ones() -> None:
    """Old trouble is over; who gives up waiting by choice is no trouble."""
    recent = ""
    for _ in range(30):
        recent = recent_with(recent, "timed_out")
    for _ in range(15):
        recent = recent_with(recent, "acquired")
    assert recent_with(recent, "withdrawn") == recent == recent_with(recent, None)
    assert (recent_success_rate(recent), recent_timeout_rate(recent)) == (0.75, 0.25)


def test_an_event_that_comes_again_counts_once() -> None:
    """A batch may be read twice after a crash."""
    tally = Tally()
    for _ in range(3):
        tally.take(Facts.of(acquired(7)))
    assert tally.of("acquired") == 1 and tally.waits.count == 1


def test_a_tally_does_not_grow_with_the_reasons_that_are_written() -> None:
    """Reasons come from many programs and versions."""
    tally = Tally()
    for seq in range(1, 1000):
        tally.take(Facts.of(events.LockRevoked(seq=seq, at_ms=1, pool="p", reason=f"r{seq}")))
    tally.take(Facts.of(events.LockRevoked(seq=1000, at_ms=1, pool="p", reason="Not a word!")))
    assert len(tally.counts) <= MOST_WORDS + 2
    assert tally.recoveries == 1000
    assert sum(count for word, count in tally.counts.items() if word.startswith("lock_revoked:")) == 1000


def test_the_levels_of_age_are_counted_apart() -> None:
    """`limits_reached_total{level}` tells a slow task from one that had to be ended."""
    tally = Tally()
    tally.take(Facts.of(events.TimeoutWarned(seq=1, at_ms=1, pool="p", reason="warning")))
    tally.take(Facts.of(events.StopRequested(seq=2, at_ms=1, pool="p", reason="soft")))
    tally.take(Facts.of(events.TimeoutWarned(seq=3, at_ms=1, pool="p", reason="hard")))
    assert tally.limits_reached == {"warning": 1, "soft": 1, "hard": 1}


# what is written

kinds = st.sampled_from(("acquired", "released", "timed_out", "expired", "unknown"))
steps = st.lists(st.tuples(kinds, st.integers(0, 3), st.integers(0, 3 * HOUR_MS)), max_size=40)


def history(rows: list[tuple[str, int, int]]) -> list[Event | None]:
    """Events of a pool from drawn rows; time goes on, seldom back."""
    some: list[Event | None] = []
    for seq, (kind, task, later_ms) in enumerate(rows, 1):
        at_ms = NOW_MS + seq * 60_000 + later_ms
        name = f"task-{task}"
        made = {
            "acquired": acquired(seq, name, at_ms=at_ms),
            "released": released(seq, name, held_ms=later_ms, at_ms=at_ms),
            "timed_out": events.WaitTimedOut(seq=seq, at_ms=at_ms, pool="p", task=name, reason="timed_out"),
            "expired": events.LockExpired(seq=seq, at_ms=at_ms, pool="p", task=name, reason="died", held_ms=9),
        }
        some.append(made.get(kind))
    return some


class Kept:
    """A store for pure tests: the fields that batches have written."""

    def __init__(self) -> None:
        self.fields: dict[str, dict[str, bytes]] = {}

    def recording(self) -> Recording:
        """What a new recorder begins with."""
        position, book = read_book(self.fields.get("", {}))
        return Recording(position, book, read_tasks(self.fields.get(":tasks", {})))

    def tallies(self, name: str) -> dict[str, Tally]:
        """What stands for an hour or a day."""
        return read_tallies(self.fields.get(name, {}))

    def write(self, batch: Batch, *, upto: int | None = None) -> None:
        """Write a batch; `upto`: cut after so many values, before the book."""
        for write in batch.writes[:upto]:
            of_key = self.fields.setdefault(write.name, {})
            if write.value:
                of_key[write.field] = write.value
            else:
                of_key.pop(write.field, None)
        if upto is None:
            self.fields.setdefault("", {}).update(position=str(batch.through).encode(), book=encode(batch.book))

    def record(self, some: list[tuple[int, Event | None]], *, upto: int | None = None) -> None:
        """A recorder's life: read, count, write."""
        recording = self.recording()
        hours, days = recording.unknown([event for _, event in some if event is not None])
        recording.learn(
            {hour: self.tallies(hour_name(hour)) for hour in hours}, {day: self.tallies(day_name(day)) for day in days}
        )
        for seq, event in some:
            recording.take(seq, event)
        if some:
            self.write(recording.batch(), upto=upto)


@settings(max_examples=60)
@example([("released", 0, 7), ("acquired", 1, 0), ("expired", 0, 7)], [3], [1])
@example([("released", 0, 7), ("acquired", 1, 0), ("expired", 0, 7)], [2], [3, 9])
@given(steps, st.lists(st.integers(1, 7), min_size=1), st.lists(st.integers(0, 9)))
def test_however_the_stream_is_cut_into_batches_the_sums_are_the_same(
    rows: list[tuple[str, int, int]], sizes: list[int], cuts: list[int]
) -> None:
    """Restarts fall anywhere; a batch cut short in the middle is completed by the next, counting nothing twice."""
    numbered = list(enumerate(history(rows), 1))
    at_once, piecewise = Kept(), Kept()
    at_once.record(numbered)
    rest, turn = numbered, 0
    while rest:
        size = sizes[turn % len(sizes)]
        if turn < len(cuts):
            piecewise.record(rest[:size], upto=cuts[turn])
        piecewise.record(rest[:size])
        rest, turn = rest[size:], turn + 1
    assert piecewise.fields.keys() == at_once.fields.keys()
    for name, fields in at_once.fields.items():
        mine = {field: msgspec.json.decode(value) for field, value in piecewise.fields[name].items()}
        assert mine == {field: msgspec.json.decode(value) for field, value in fields.items()}
    book = at_once.recording().book
    assert book.read == len(numbered)
    hours = {name for name in at_once.fields if name[1:].isdigit()}
    minutes = [tally for name in hours for field, tally in at_once.tallies(name).items() if field != WHOLE]
    days = [tally for name in at_once.fields if name.startswith(":tasks:") for tally in at_once.tallies(name).values()]
    for parts in (minutes, days):
        assert sum(tally.of("acquired") for tally in parts) == book.total.of("acquired")


def counted(some: list[Event]) -> tuple[Recording, Kept]:
    """A new recording of these events, and what it has written."""
    recording, kept = Recording(None, Book(), {}), Kept()
    hours, days = recording.unknown(some)
    recording.learn({hour: {} for hour in hours}, {day: {} for day in days})
    for event in some:
        recording.take(event.seq, event)
    kept.write(recording.batch())
    return recording, kept


def test_only_the_most_recent_tasks_are_kept() -> None:
    """Task names may be made up by programs; the store must not grow with them."""
    _, kept = counted([acquired(seq, f"task-{seq}", at_ms=NOW_MS + seq) for seq in range(1, MOST_TASKS + 51)])
    left = sorted(f"task-{seq}" for seq in range(51, MOST_TASKS + 51))
    assert sorted(kept.fields[":tasks"]) == sorted(kept.fields[day_name(NOW_MS // DAY_MS)]) == left


def test_a_task_forgets_holds_that_are_long_ago() -> None:
    """What a task did before its last change says little."""
    recording, _ = counted([released(seq, held_ms=seq, at_ms=NOW_MS + seq) for seq in range(1, 60)])
    assert recording.tasks["t"].recent_holds_ms == list(range(60 - RECENT_HOLDS, 60))


def test_what_is_written_of_minutes_and_days_ends_after_fourteen_days() -> None:
    """The store does not grow for ever; totals and recent holds have no end."""
    recording, _ = counted([acquired(1)])
    recording.take(2, released(2))
    ends = {write.name: write.ends_ms for write in recording.batch().writes}
    assert ends.pop(":tasks") is None
    assert len(ends) == 2
    assert all(end is not None and 14 * DAY_MS <= end - NOW_MS <= 15 * DAY_MS for end in ends.values())


def test_holds_that_were_cut_short_do_not_shorten_the_forecast() -> None:
    """A killed holder says nothing of how long its work takes."""
    event = events.LockRevoked(seq=1, at_ms=NOW_MS, pool="p", task="t", held_ms=3, reason="revoked")
    recording, kept = counted([event])
    assert recording.tasks["t"].recent_holds_ms == []
    assert kept.tallies(day_name(NOW_MS // DAY_MS))["t"].holds.count == 1


def test_gaps_are_told_from_jumps_of_the_numbers() -> None:
    """A new epoch of the store makes the numbers jump, and nothing is lost by it."""
    recording = Recording(100, Book(read=10, last_ms=NOW_MS), {})
    far = acquired(10**12)
    assert recording.find_gap(page_of([far], added=11, length=3, first=90)) is None
    assert recording.find_gap(page_of([far], added=11, length=1, first=far.seq)) is None
    gap = recording.find_gap(page_of([far], added=20, length=1, first=far.seq))
    assert gap is not None and gap.missed == 9
    assert recording.book.total.of("missed") == 9 and recording.book.read == 19


def test_a_stream_that_was_removed_leaves_a_gap_of_unknown_size() -> None:
    """It is said that something is missing, and no number is made up."""
    recording = Recording(100, Book(read=50, last_ms=NOW_MS), {})
    gap = recording.find_gap(page_of([acquired(200)], added=1, length=1, first=200))
    assert gap is not None and gap.missed is None
    assert recording.book.read == 0 and recording.book.gaps == [gap]


def test_the_first_recording_of_a_pool_has_no_gap() -> None:
    """Statistics begin with what the stream still has, and say since when."""
    recording = Recording(None, Book(), {})
    assert recording.find_gap(page_of([acquired(500)], added=500, length=1, first=500)) is None
    recording.learn({NOW_MS // HOUR_MS: {}}, {NOW_MS // DAY_MS: {}})
    recording.take(500, acquired(500))
    assert (recording.book.read, recording.book.since_ms, recording.book.total.of("missed")) == (500, NOW_MS, 0)


# health


def tally(**counts: int) -> Tally:
    """A tally of these words."""
    return Tally(counts=counts)


def test_the_score_is_whole_while_nothing_has_happened_and_at_the_documented_aims() -> None:
    """100 means that every aim is met."""
    assert health(Tally(), "", 0).score == 100
    assert health(tally(acquired=95, timed_out=5), "s" * 19 + "t", 0).score == 100
    assert sum(aim.weight for aim in AIMS) == 100


def test_the_score_falls_with_what_goes_wrong_and_its_parts_say_why() -> None:
    """A person can check the number by hand."""
    bad = health(tally(acquired=80, timed_out=20), "s" * 14 + "t" * 6, 1)
    assert bad.score == 20
    assert {part.name for part in bad.parts if part.points == 0} == {
        "success_rate",
        "recent_success_rate",
        "timeout_rate",
        "dead_locks",
    }
    assert health(tally(acquired=100, lock_expired=4, gpu_quarantined=4), "s", 0).score == 90
    assert health(tally(acquired=100, heartbeat_missed=6), "s", 0).score == 95


@given(
    st.dictionaries(
        st.sampled_from(("acquired", "timed_out", "failed", "lock_expired", "gpu_quarantined", "heartbeat_missed")),
        st.integers(0, 1000),
    ),
    st.text("stf", max_size=20),
    st.integers(0, 5),
)
def test_the_score_stays_between_0_and_100(counts: dict[str, int], recent: str, dead: int) -> None:
    """Whatever happens, it can be shown on a gauge."""
    assert 0 <= health(Tally(counts=counts), recent, dead).score <= 100


def test_a_task_book_survives_the_store() -> None:
    """What is read back is what was written."""
    book = TaskBook(last_ms=3, through=2, recent_holds_ms=[4])
    assert read_tasks({"t": encode(book)})["t"] == book
