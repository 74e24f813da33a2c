"""What a pool has done between two moments: attempts, waits, holds, and how busy server and gpus were.

A short and recent window is counted from the events themselves, to the millisecond; any other from the whole minutes
inside it, so that what was before a change of the configuration is never counted after it, nor the other way round. The
server's load is known by the minute alone. An attempt counts where it ended.
"""

from __future__ import annotations

import msgspec

from gpulockd.ledger.happened import lately
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.load import Load, load_name, read_loads, summed_load
from gpulockd.ledger.recorded import BOOK, HOUR_MS, MINUTE_MS, WHOLE, Ask, Gap, Stored, read_book, recorded
from gpulockd.ledger.statistics import Statistics, hours_of
from gpulockd.ledger.tally import Facts, Tally

EXACT_MS = 10 * MINUTE_MS
"""A window that begins at most so long ago is counted from the events, if the stream still has them."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted from `from_ms` to `to_ms` (the server's wall clock).

    `exact`: from the events; else from whole minutes. `gaps`: events in this time that were lost to the count.
    """

    pool: str
    from_ms: int
    to_ms: int
    exact: bool
    tally: Tally
    load: Load
    gaps: tuple[Gap, ...] = ()

    @property
    def samples(self) -> int:
        """How many attempts the lock has decided."""
        return self.tally.attempts

    @property
    def success_rate(self) -> float:
        """The share of attempts that got the lock; 1.0 before any."""
        return self.tally.success_rate

    @property
    def failure_rate(self) -> float:
        """The share of attempts that did not get the lock, those that timed out among them; 0.0 before any."""
        return 1.0 - self.tally.success_rate

    @property
    def timeout_rate(self) -> float:
        """The share of attempts whose wait limit was over first; 0.0 before any."""
        return self.tally.timeout_rate

    @property
    def redis_cpu(self) -> float | None:
        """The CPU time of the server as a share of one core; None if it was not measured."""
        return self.load.redis_cpu

    @property
    def redis_cpu_most(self) -> float | None:
        """The highest share of one core that was measured; None if none was."""
        return self.load.redis_cpu_most

    @property
    def busy_share(self) -> float | None:
        """The share of gpus × time in which somebody held the gpu; None if it was not measured."""
        return self.load.busy_share

    @property
    def span_s(self) -> float:
        """The length of the window (in seconds)."""
        return max(0, self.to_ms - self.from_ms) / 1000

    @property
    def holds_per_hour(self) -> float | None:
        """How many holds ended in an hour; None for a window without length."""
        return self.tally.holds.count * HOUR_MS / (self.to_ms - self.from_ms) if self.to_ms > self.from_ms else None


async def impact_of(
    ask: Ask, keys: PoolKeys, *, from_ms: int, to_ms: int | None = None, exact_ms: int = EXACT_MS
) -> Measured:
    """Measure a pool between two moments (the server's wall clock); it begins no sooner than the statistics do.

    :param to_ms: None is now
    :param exact_ms: a window that begins at most so long ago is counted from the events
    :raises StoreUnavailable: if the store is away
    :raises UnreadableError: if another version of gpulockd has written the statistics
    """
    stored = await ask(recorded(keys, parts=(BOOK,)))
    if not isinstance(stored, Stored):
        nothing = from_ms if to_ms is None else to_ms
        return Measured(pool=keys.pool, from_ms=nothing, to_ms=nothing, exact=True, tally=Tally(), load=Load())
    _, book = read_book(stored.hashes[0])
    end_ms = stored.wall_ms if to_ms is None else min(to_ms, stored.wall_ms)
    since_ms = book.since_ms or await _first_ms(ask, keys, from_ms)
    begin_ms = min(max(from_ms, since_ms), end_ms)
    young = stored.wall_ms - begin_ms <= exact_ms
    counted = await _exactly(ask, keys, begin_ms, end_ms, stored.wall_ms) if young else None
    exact = counted is not None
    if counted is None:
        begin_ms = min(-(-begin_ms // MINUTE_MS) * MINUTE_MS, end_ms)
        if end_ms < stored.wall_ms:
            end_ms = max(begin_ms, end_ms // MINUTE_MS * MINUTE_MS)
        # Nothing lies between equal moments, and a reader asked for that would have the whole of their minute.
        counted = await _by_minutes(ask, keys, begin_ms, end_ms) if end_ms > begin_ms else Tally()
    return Measured(
        pool=keys.pool,
        from_ms=begin_ms,
        to_ms=end_ms,
        exact=exact,
        tally=counted,
        load=await _load(ask, keys, begin_ms, end_ms, stored.wall_ms),
        gaps=() if exact else tuple(gap for gap in book.gaps if gap.from_ms < end_ms and gap.to_ms > begin_ms),
    )


async def _first_ms(ask: Ask, keys: PoolKeys, from_ms: int) -> int:
    """Return when the events of a pool begin whose recorder has not counted any yet."""
    found = await lately(ask, keys, since_ms=from_ms)
    return found.events[0].at_ms if found.events else found.wall_ms


async def _exactly(ask: Ask, keys: PoolKeys, from_ms: int, to_ms: int, now_ms: int) -> Tally | None:
    """Count the events of a window; None if the stream no longer has all of them."""
    found = await lately(ask, keys, since_ms=from_ms)
    if found.from_ms > from_ms:
        return None
    tally = Tally()
    for event in found.events:
        if event.at_ms < to_ms or to_ms == now_ms:
            tally.take(Facts.of(event))
    return tally


async def _by_minutes(ask: Ask, keys: PoolKeys, from_ms: int, to_ms: int) -> Tally:
    return (await Statistics.read(ask, keys, from_ms=from_ms, to_ms=to_ms, tasks=())).window


async def _load(ask: Ask, keys: PoolKeys, from_ms: int, to_ms: int, now_ms: int) -> Load:
    """Return the load of the minutes that a window touches."""
    if to_ms <= from_ms:
        return Load()
    hours = hours_of(from_ms, to_ms - 1, whole=True, now_ms=now_ms)
    stored = await ask(recorded(keys, parts=[(load_name(hour), field) for hour, field in hours]))
    if not isinstance(stored, Stored):
        return Load()
    inside: list[Load] = []
    for (hour, wanted), fields in zip(hours, stored.hashes, strict=True):
        for field, load in read_loads(fields).items():
            begin_ms = hour * HOUR_MS + (0 if field == WHOLE else int(field) * MINUTE_MS)
            if field == wanted == WHOLE or (field != WHOLE and from_ms - MINUTE_MS < begin_ms < to_ms):
                inside.append(load)
    return summed_load(inside)
