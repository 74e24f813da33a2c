"""The dry run: what proposed limits would have done to what is on record, and what the record cannot say."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gpulockd import events
from gpulockd.config.queueing import replay
from gpulockd.config.replay import Range, Replayed, TaskRecord, over, record_of, replayed
from gpulockd.events import Event
from gpulockd.ledger.distribution import Distribution
from gpulockd.ledger.tally import Facts, Tally
from gpulockd.settings import Settings, settings_from

MINUTE_MS = 60_000


def limits(hard_s: float = 7200, max_wait_s: float = 1800, **tasks: dict[str, float]) -> Settings:
    """Settings with these limits (in seconds)."""
    levels = {"warning": 1, "soft_timeout": 1, "hard_timeout": hard_s}
    return settings_from(
        {
            "gpu_lock": {"max_wait_time": max_wait_s},
            "gpu_lock_monitor": {"timeout_levels": levels},
            "tasks": tasks,
        }
    )


def of(holds_ms: list[int] = [], waits_ms: list[int] = [], **counts: int) -> Tally:  # noqa: B006  never changed
    """A tally of these holds and waits."""
    counts.setdefault("acquired", len(waits_ms))
    return Tally(counts=counts, waits=Distribution.of(waits_ms), holds=Distribution.of(holds_ms))


def dry_run(
    proposed: Settings, record: dict[str, TaskRecord], present: Settings | None = None, **other: Any
) -> Replayed:
    """Replay against the documented limits."""
    return replayed(
        present=present or limits(), proposed=proposed, record=record, since_ms=0, until_ms=MINUTE_MS, **other
    )


def job(seq: int, asked_s: float, began_s: float, ended_s: float, gpu: int = 0, task: str = "t") -> list[Event]:
    """The events of one job."""
    asked, began, ended = (round(1000 * moment) for moment in (asked_s, began_s, ended_s))
    common: dict[str, Any] = {"pool": "p", "gpus": (f"gpu_lock:{gpu}",), "lease": f"l{seq}", "task": task}
    return [
        events.LockAcquired(seq=seq, at_ms=began, waited_ms=began - asked, **common),
        events.LockReleased(seq=seq + 1, at_ms=ended, held_ms=ended - began, **common),
    ]


def test_holds_that_a_lower_limit_would_have_stopped_are_counted_by_task() -> None:
    """The promised sentence: who would be hit by a limit, before it is set."""
    minutes = [5 * MINUTE_MS] * 40
    record = {
        "ocr-batch": TaskRecord(tally=of([*minutes, *[50 * MINUTE_MS] * 6])),
        "train-lora": TaskRecord(tally=of([*minutes, *[90 * MINUTE_MS] * 3])),
        "whisper": TaskRecord(tally=of(minutes)),
    }
    found = dry_run(limits(hard_s=15 * 60), record)
    assert "9 holds would have been stopped that were not (ocr-batch 6, train-lora 3)" in found.text
    assert found.stopped == Range(9, 9)
    assert found.holds == 129
    assert found.timed_out == Range()


def test_a_bucket_that_a_limit_cuts_makes_a_range() -> None:
    """Within a bucket nobody knows: a number there would be invented."""
    record = {"t": TaskRecord(tally=of([108_000, 120_000, 300_000]))}
    found = dry_run(limits(hard_s=110), record)
    assert found.stopped.least == 1 and found.stopped.most == 3
    assert found.text.startswith("1 to 3 holds would have been stopped")
    assert any(note.startswith("ranges") for note in found.notes)


def test_events_that_are_still_there_make_a_range_exact() -> None:
    """The latest holds are known to the millisecond."""
    lengths = [108_000, 120_000, 300_000]
    record = {"t": TaskRecord(tally=of(lengths), released_ms=lengths)}
    assert dry_run(limits(hard_s=110), record).stopped == Range(2, 2)
    partly = {"t": TaskRecord(tally=of(lengths), released_ms=[120_000])}
    assert dry_run(limits(hard_s=110), partly).stopped == Range(2, 3)


def test_holds_that_were_stopped_already_are_not_counted_again() -> None:
    """ "That were not": what a limit or an operator ended is no news."""
    record = {"t": TaskRecord(tally=of([60_000] * 5 + [3_000_000] * 4, lock_revoked=3, lock_expired=1))}
    assert dry_run(limits(hard_s=900), record).stopped.least == 0
    surely = {"t": TaskRecord(tally=of([60_000] * 5 + [3_000_000] * 4, lock_revoked=3))}
    assert dry_run(limits(hard_s=900), surely).stopped == Range(1, 4)


def test_holds_beyond_the_present_limit_have_one_of_their_own_and_keep_it() -> None:
    """A job that asked for 24 h is stopped by neither the old nor the new limit."""
    record = {"night": TaskRecord(tally=of([40_000_000] * 3 + [2_000_000]))}
    assert dry_run(limits(hard_s=900), record).stopped == Range(1, 1)


def test_limits_of_tasks_are_limits_of_tasks() -> None:
    """A task with a limit of its own is judged by that."""
    record = {"whisper": TaskRecord(tally=of([2_000_000])), "ocr": TaskRecord(tally=of([2_000_000]))}
    found = dry_run(limits(hard_s=900, whisper={"hard_timeout": 7200}), record)
    assert found.stopped_tasks == {"ocr": Range(1, 1)}


def test_a_longer_limit_stops_nobody_and_none_is_stopped_where_nobody_is() -> None:
    """Only what a change takes away is told; with recovery off the limit takes nothing."""
    record = {"t": TaskRecord(tally=of([2_000_000]))}
    assert dry_run(limits(hard_s=90_000), record).stopped == Range()
    off = settings_from({"gpu_lock_monitor": {"auto_recovery": False}})
    assert dry_run(off, record).stopped == Range()
    assert dry_run(limits(hard_s=900), record, present=off).stopped == Range(1, 1)


def test_waits_that_would_have_timed_out_are_counted() -> None:
    """A shorter wait limit turns successes into timeouts."""
    record = {"t": TaskRecord(tally=of([], [1_000] * 50 + [900_000] * 2, timed_out=4))}
    found = dry_run(limits(max_wait_s=300), record)
    assert "2 waits would have timed out that did not (t 2)" in found.text
    assert (found.timed_out, found.waited_on, found.wait_p95) == (Range(2, 2), 0, 1.015)
    longer = dry_run(limits(max_wait_s=3600), record)
    assert (longer.timed_out, longer.waited_on) == (Range(), 4)
    assert "4 that timed out would have waited on" in longer.text


def test_of_an_empty_record_it_says_that_nothing_can_be_said() -> None:
    """No holds on record are no promise that none would be stopped."""
    found = dry_run(limits(hard_s=1), {})
    assert found.notes == ("nothing is on record of that time, so nothing can be said",)
    assert (found.wait_p95, found.wait_p95_replayed) == (None, None)


def test_many_tasks_are_named_in_part() -> None:
    """The sentence stays a sentence."""
    record = {f"t{n}": TaskRecord(tally=of([2_000_000] * (n + 1))) for n in range(8)}
    found = dry_run(limits(hard_s=900), record)
    assert (
        "36 holds would have been stopped that were not (t7 8, t6 7, t5 6, t4 5, t3 4, and 3 more tasks)" in found.text
    )
    assert len(found.stopped_tasks) == 8


def test_stopping_long_holds_shortens_the_waits_behind_them() -> None:
    """What a limit is for: the p95 of those who waited behind, replayed."""
    some: list[Event] = []
    for n in range(30):  # one asks each 100 s behind the one before; every tenth holds for 1000 s
        began = 100.0 * n if n == 0 else some[-1].at_ms / 1000
        some += job(2 * n + 1, 100.0 * n, max(began, 100.0 * n), max(began, 100.0 * n) + (1000 if n % 10 == 0 else 50))
    tally = Tally()
    for event in some:
        tally.take(Facts.of(event))
    found = dry_run(limits(hard_s=200), record_of({"t": tally}, some), recent=some)
    assert found.stopped == Range(3, 3)
    assert found.replayed == 30
    assert found.wait_p95_recent is not None and found.wait_p95_replayed is not None
    assert found.wait_p95_replayed < found.wait_p95_recent / 3
    assert "(replayed with the last 30 waits)" in found.text


def test_a_queue_that_nothing_shortens_is_replayed_as_it_was() -> None:
    """The replay has no opinion of its own."""
    some = [event for n in range(40) for event in job(2 * n + 1, 10 * n, 30 + 30 * n, 60 + 30 * n, gpu=n % 2)]
    same = replay(some, hard_ms=lambda task: math.inf, max_wait_ms=lambda task: math.inf)
    assert same.waits == 40 and same.before_p95_s == same.after_p95_s
    assert replay(some[:10], hard_ms=lambda task: 1, max_wait_ms=lambda task: 1).after_p95_s is None


def test_who_would_time_out_leaves_the_gpu_to_the_next() -> None:
    """A shorter wait limit shortens the waits of those that stay."""
    some = [event for n in range(40) for event in job(2 * n + 1, 0, 30 * n, 30 + 30 * n)]
    found = replay(some, hard_ms=lambda task: math.inf, max_wait_ms=lambda task: 300_000)
    assert found.after_p95_s is not None and found.after_p95_s <= 300


@given(st.lists(st.integers(0, 10_000_000), max_size=40), st.integers(0, 10_000_000), st.integers(0, 40))
def test_the_truth_is_always_within_the_range(lengths: list[int], limit_ms: int, known: int) -> None:
    """Bounds that do not hold are worse than none; with all known, there is nothing between them."""
    truth = sum(ms > limit_ms for ms in lengths)
    found = over(Distribution.of(lengths), limit_ms, lengths[:known])
    assert found.least <= truth <= found.most
    exact = over(Distribution.of(lengths), limit_ms, lengths)
    assert exact.least == truth == exact.most


def test_a_change_that_no_record_tells_of_says_so() -> None:
    """Holds and waits that nothing touches are no answer to whoever proposes another poll_interval."""
    record = {"t": TaskRecord(tally=of([MINUTE_MS] * 9, [MINUTE_MS] * 9))}
    found = dry_run(settings_from({"gpu_lock": {"poll_interval": 0.7}}), record, present=settings_from({}))
    assert found.text.startswith("it changes no limit of holds or waits") and "bench config" in found.text
    assert [note.split(" ")[0] for note in found.notes] == ["poll"]
