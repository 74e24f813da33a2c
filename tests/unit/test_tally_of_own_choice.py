"""What is counted of ends that somebody meant, and of what a daemon tries for itself."""

from __future__ import annotations

import pytest

from gpulockd.events import Event, GpuResumed, LockAcquired, LockExpired, LockReleased, StopRequested, decode
from gpulockd.ledger.tally import Facts, Tally, outcome
from gpulockd.model import PROBE_KEY


def tally(*events: Event) -> Tally:
    """These events, counted."""
    counted = Tally()
    for event in events:
        counted.take(Facts.of(event))
    return counted


def test_a_time_that_was_over_as_planned_is_nobodys_loss() -> None:
    """Its hold counts as every other; a lock timeout that passed stays a loss."""
    planned = LockExpired(seq=1, at_ms=1, pool="p", reason="expired", held_ms=500, planned=True)
    timeout = LockExpired(seq=2, at_ms=2, pool="p", reason="expired", held_ms=700)
    found = tally(planned, timeout)
    assert (found.lost, found.recoveries, found.planned_ends, found.holds.count) == (1, 1, 1, 2)


def test_an_event_without_the_word_was_not_planned() -> None:
    """Events of earlier daemons stand in the stream."""
    event = decode(b'{"type":"lock_expired","seq":1,"at_ms":1,"pool":"p","reason":"died"}')
    assert isinstance(event, LockExpired) and event.planned is False


def test_an_operators_word_reaches_no_limit_and_his_hand_cleans_nothing() -> None:
    """Who looks for slow tasks must not find those that somebody else wanted to end."""
    found = tally(
        StopRequested(seq=1, at_ms=1, pool="p", reason="operator"),
        GpuResumed(seq=2, at_ms=2, pool="p", gpus=("gpu_lock:0",), reason="resumed by root"),
    )
    assert found.limits_reached == {"warning": 0, "soft": 0, "hard": 0}
    assert found.cleanups == {"session": 0, "gpu": 0}


@pytest.mark.parametrize("kind", [LockAcquired, LockReleased])
def test_what_a_daemon_tries_for_itself_is_not_counted(kind: type[Event]) -> None:
    """It is no user's attempt, however well it goes."""
    event = kind(seq=1, at_ms=1, pool="p", gpus=(PROBE_KEY,), task="config-probe", held_ms=1)
    assert outcome(event) is None
    found = tally(event)
    assert (found.counts, found.holds.count, found.through) == ({}, 0, 1)
