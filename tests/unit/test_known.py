"""Statistics of this very moment, and what a daemon has heard: each event counts once."""

from __future__ import annotations

import msgspec
import pytest

from gpulockd.client.losses import in_words
from gpulockd.events import (
    Event,
    GpuSettled,
    LockAcquired,
    LockExpired,
    LockReleased,
    LockRevoked,
    TimeoutWarned,
    WaitTimedOut,
)
from gpulockd.ledger.recorded import Book
from gpulockd.ledger.statistics import Statistics
from gpulockd.ledger.tally import Facts, Tally
from gpulockd.web.feed import Happened
from gpulockd.web.heard import Heard
from gpulockd.web.known import Count, Known

GPU_0 = ("gpu_lock:0",)


def statistics(*events: Event) -> Statistics:
    """What the recorder has written of these events."""
    total = Tally()
    for event in events:
        total.take(Facts.of(event))
    return Statistics(
        pool="p", at_ms=0, book=Book(total=total, recent="s"), from_ms=0, to_ms=0, window=total, spans=(), tasks={}
    )


def with_events(read: Statistics, events: list[Event]) -> Known:
    """What was read, with these events."""
    count = Count(read)
    count.take(events)
    return count.known()


def test_events_that_are_recorded_already_count_once() -> None:
    """The recorder and the feed tell of the same events; an answer between the two must not count them twice."""
    first = LockAcquired(seq=1, at_ms=1, pool="p", waited_ms=0)
    more = [WaitTimedOut(seq=2, at_ms=2, pool="p", waited_ms=9), LockReleased(seq=3, at_ms=3, pool="p", held_ms=7)]
    read = statistics(first)
    known = with_events(read, [first, *more])
    assert (known.total.attempts, known.total.of("timed_out"), known.recent) == (2, 1, "st")
    assert known.window.holds.sum_ms == 7
    again = with_events(read, [first, *more])
    assert again == known  # what was read is not changed by who asks
    assert with_events(statistics(first, *more), [first, *more]).total.attempts == 2


def test_an_answer_does_not_change_when_more_is_counted() -> None:
    """Who makes an answer of it may wait in between, and its numbers must fit together."""
    first, second = (LockAcquired(seq=seq, at_ms=seq, pool="p", waited_ms=seq) for seq in (1, 2))
    count = Count(statistics())
    count.take([first])
    before = count.known()
    count.take([first, second])
    assert (before.total.attempts, before.total.waits.sum_ms, before.window.waits.buckets) == (1, 1, {1: 1})
    after = count.known()
    assert (after.total.attempts, after.total.waits.sum_ms, count.through) == (2, 3, 2)
    assert after.window.waits.buckets == {1: 1, 2: 1}


def heard(heard: Heard, *events: Event) -> None:
    """Hear of these events as the feed tells them."""
    for event in events:
        heard.take(Happened(event.seq, event.kind, msgspec.json.encode(event)))


def test_a_hand_off_is_from_a_free_gpu_to_a_waiter_that_has_it() -> None:
    """Somebody who comes to a gpu that has long been free was handed nothing."""
    took_s: list[float] = []
    one = Heard(took_s.append)
    heard(one, LockReleased(seq=1, at_ms=1000, pool="p", gpus=GPU_0, held_ms=1))
    heard(one, LockAcquired(seq=2, at_ms=1004, pool="p", gpus=GPU_0, waited_ms=500, via="doorbell"))
    assert took_s == [0.004]
    heard(one, LockReleased(seq=3, at_ms=2000, pool="p", gpus=GPU_0, held_ms=1))
    heard(one, LockAcquired(seq=4, at_ms=9000, pool="p", gpus=GPU_0, waited_ms=0))
    assert took_s == [0.004]
    heard(one, LockExpired(seq=5, at_ms=9500, pool="p", gpus=GPU_0, reason="died"))
    heard(one, GpuSettled(seq=6, at_ms=9700, pool="p", gpus=GPU_0))
    heard(one, LockAcquired(seq=7, at_ms=9710, pool="p", gpus=GPU_0, waited_ms=900, via="poll"))
    assert took_s == [0.004, 0.01]  # a gpu that settles is not free
    assert one.wakeups == {"doorbell": 1, "poll": 1}
    assert (one.kinds["lock_expired"], one.expired_at_ms) == (1, 9500)


def test_an_event_that_this_version_cannot_read_is_only_counted() -> None:
    """Another version writes the stream too, and a feed that breaks on it would end the daemon."""
    one = Heard(lambda _: None)
    one.take(Happened(1, "lock_acquired", b'{"type":"lock_acquired","seq":"?"}'))
    one.take(Happened(2, "something_new", b"{}"))
    assert one.kinds == {"lock_acquired": 1, "something_new": 1}


def test_who_took_a_lease_decides_what_it_counts_as() -> None:
    """An operator's hand is no recovery, and the hard limit that took a lease was reached."""
    tally = Tally()
    for seq, reason in enumerate(("operator", "hard_timeout", "silent", "gpu_lost"), 1):
        tally.take(Facts.of(LockRevoked(seq=seq, at_ms=1, pool="p", reason=reason, held_ms=5)))
    tally.take(Facts.of(TimeoutWarned(seq=9, at_ms=1, pool="p", reason="hard")))
    assert tally.recoveries == 3
    assert tally.limits_reached == {"warning": 0, "soft": 0, "hard": 2}
    assert tally.of("lock_revoked:operator") == 1


@pytest.mark.parametrize("reason", ["revoked", "operator", "hard_timeout", "silent", "gpu_lost", "expired", "died"])
def test_every_loss_has_words(reason: str) -> None:
    """A holder that reads "hard_timeout" must not look it up."""
    assert in_words(reason) != reason
    assert in_words("cut off from Redis: no answer") == "cut off from Redis: no answer"
