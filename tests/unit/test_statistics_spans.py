"""What a window of statistics reads of each hour, and the spans that it makes of it."""

from __future__ import annotations

from gpulockd.ledger.recorded import HOUR_MS, MINUTE_MS, WHOLE
from gpulockd.ledger.statistics import Span, _spans, hours_of
from gpulockd.ledger.tally import Tally

HOUR = 498_000
BEGIN_MS = HOUR * HOUR_MS


def counted(grants: int) -> Tally:
    """So many grants."""
    return Tally(counts={"granted": grants})


def minutes(*fields: int) -> dict[str, Tally]:
    """One grant in each of these minutes, and the sum of the hour."""
    found = {str(field): counted(1) for field in fields}
    return found | {WHOLE: counted(len(fields))}


def test_an_hour_of_which_some_minutes_are_asked_for_is_one_span_of_their_sum() -> None:
    """A window by hours that begins at half past must not count what was before."""
    told = _spans(HOUR, minutes(1, 29, 30, 31), False, BEGIN_MS + 30 * MINUTE_MS, BEGIN_MS + HOUR_MS, "hour")
    assert [(span.at_ms - BEGIN_MS, span.tally.counts) for span in told] == [(30 * MINUTE_MS, {"granted": 2})]


def test_by_minute_each_is_a_span() -> None:
    """Empty ones are left out, and the end belongs to the next window."""
    told = _spans(HOUR, minutes(1, 29, 30, 31), False, BEGIN_MS + 29 * MINUTE_MS, BEGIN_MS + 31 * MINUTE_MS, "minute")
    assert told == [Span(at_ms=BEGIN_MS + minute * MINUTE_MS, tally=counted(1)) for minute in (29, 30)]


def test_of_an_hour_that_is_wholly_inside_only_its_sum_is_read() -> None:
    """Two weeks by the minute would be 20,000 fields."""
    hours = hours_of(BEGIN_MS + 1, BEGIN_MS + 3 * HOUR_MS, whole=True, now_ms=BEGIN_MS + 9 * HOUR_MS)
    assert hours == [(HOUR, ""), (HOUR + 1, WHOLE), (HOUR + 2, WHOLE), (HOUR + 3, "")]
    told = _spans(HOUR + 1, {WHOLE: counted(4)}, True, BEGIN_MS, BEGIN_MS + 3 * HOUR_MS, "hour")
    assert told == [Span(at_ms=BEGIN_MS + HOUR_MS, tally=counted(4))]
