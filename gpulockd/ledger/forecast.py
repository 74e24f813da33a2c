"""When a lease may end and a place in the queue may come: the median and spread of the task's recent holds.

Plain on purpose: a person can check it. Nothing is decided by it. What is not known is None, never a guess.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import msgspec

from gpulockd.ledger.seating import Seating, holders, present
from gpulockd.model import Snapshot, TicketRecord, Wants

FEWEST_HOLDS = 3
"""A task that has released fewer leases than that is not known."""

HOLD_BACK_S = 60.0

Holds = Mapping[str, Sequence[int]]
"""Task -> its recent holds (ms): `Statistics.recent_holds_ms()`."""


Ends = Mapping[str, int]
NO_ENDS: Ends = {}


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """When something is expected, in seconds from now: half of the time between `early_s` and `late_s`."""

    early_s: float
    middle_s: float
    late_s: float


def expected_end(recent_holds_ms: Sequence[int], age_ms: int) -> Expected | None:
    """Return when a lease of this age (ms) may end: by those of the task's recent holds that took longer.

    None if the task is not known, or none of its holds took that long.
    """
    quartiles = [_left(recent_holds_ms, age_ms, share) for share in _SHARES]
    return _expected(quartiles)


def expected_starts(
    snapshot: Snapshot, holds: Holds, *, hold_back_s: float = HOLD_BACK_S, ends_ms: Ends = NO_ENDS
) -> dict[str, Expected | None]:
    """Return when each ticket of the snapshot's page of the queue may get its gpus; None where it cannot be said.

    The queue is played through three times: all holds short, middling and long (the quartiles of their tasks). A holder
    of an unknown task never leaves, so who depends on it is unknown. Tickets whose programs are away are passed over.

    :param hold_back_s: how long a ticket that does not fit lets later ones pass (in seconds)
    :param ends_ms: in how long a lease ends for sure, by its id (ms)
    """
    played = [_play(snapshot, holds, share, hold_back_s, ends_ms) for share in _SHARES]
    return {ticket.id: _expected([starts.get(ticket.id) for starts in played]) for ticket in snapshot.queue}


_SHARES = (0.25, 0.5, 0.75)


def _expected(quartiles: Sequence[float | None]) -> Expected | None:
    known = sorted(ms for ms in quartiles if ms is not None)
    if len(known) < len(quartiles):
        return None
    return Expected(early_s=known[0] / 1000, middle_s=known[1] / 1000, late_s=known[2] / 1000)


def _left(recent_holds_ms: Sequence[int], age_ms: int, share: float) -> float | None:
    """Return what a hold of this age has left (ms), as the quantile of the holds that took longer; None if unknown."""
    if len(recent_holds_ms) < FEWEST_HOLDS:
        return None
    longer = sorted(hold_ms for hold_ms in recent_holds_ms if hold_ms > age_ms)
    if not longer:
        return None
    return float(longer[max(0, -int(-share * len(longer) // 1) - 1)] - age_ms)


class _Waiting(msgspec.Struct):
    """A ticket of the play, in order."""

    id: str
    text: str
    wants: Wants
    task: str
    waited_ms: int


def _play(snapshot: Snapshot, holds: Holds, share: float, hold_back_s: float, ends_ms: Ends) -> dict[str, float]:
    """Return when each ticket begins (ms from now), each hold at that quantile; those that never do are missing."""
    seating = Seating.of(snapshot)
    ends: list[tuple[float, str, tuple[str, ...]]] = []
    for lease in holders(snapshot):
        rest_ms: float | None = ends_ms.get(lease.id)
        if rest_ms is None:
            rest_ms = _left(holds.get(lease.job.task, ()), lease.held_ms, share)
        if rest_ms is not None:
            heapq.heappush(ends, (rest_ms, lease.id, lease.gpus))
    waiting = [_waiting(ticket) for ticket in present(snapshot)]
    starts: dict[str, float] = {}
    now_ms = float(snapshot.frozen_ms)
    while waiting:
        while ends and ends[0][0] <= now_ms:
            _, id, keys = heapq.heappop(ends)
            seating.rise(id, keys)
        for ticket, keys in _seat(seating, waiting, now_ms, hold_back_s * 1000):
            starts[ticket.id] = now_ms
            hold_ms = _left(holds.get(ticket.task, ()), 0, share)
            if hold_ms is not None:
                heapq.heappush(ends, (now_ms + hold_ms, ticket.id, keys))
        waiting = [ticket for ticket in waiting if ticket.id not in starts]
        if not ends:
            break
        now_ms = max(now_ms, ends[0][0])
    return starts


def _waiting(ticket: TicketRecord) -> _Waiting:
    return _Waiting(ticket.id, ticket.wants, Wants.parse(ticket.wants), ticket.job.task, ticket.waited_ms)


def _seat(
    seating: Seating, waiting: Sequence[_Waiting], now_ms: float, hold_back_ms: float
) -> list[tuple[_Waiting, tuple[str, ...]]]:
    """Seat all that can begin now, in order; who has waited too long keeps its gpus from later ones."""
    seated: list[tuple[_Waiting, tuple[str, ...]]] = []
    stuck: set[str] = set()
    kept: set[str] = set()
    for ticket in waiting:
        if ticket.text in stuck:
            continue  # where equal wants found no room there is none
        keys = seating.find(ticket.wants, kept)
        if keys is not None:
            seating.sit(ticket.id, ticket.wants, keys)
            seated.append((ticket, keys))
            continue
        stuck.add(ticket.text)
        if ticket.waited_ms + now_ms >= hold_back_ms:
            kept.update(seating.choose(ticket.wants))
    return seated
