"""Is a lock dead? What a snapshot and what is seen of the holders say together, as suspicions with their reasons.

A suspicion decides nothing: the guard and the enforcer act by their own rules. Four kinds: the holder is gone and its
lease still stands; the holder gives no sign of work; the card does nothing while others wait for it; holders wait for
each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from gpulockd.ledger.seating import Seating, holders, present
from gpulockd.model import Snapshot, TicketRecord, Wants
from gpulockd.units import format_duration

Kind = Literal["holder_gone", "stalled", "idle", "cycle"]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon sees of a lease's run and cards (in seconds); None: it cannot see that.

    `gone_s`: since when no process of the run lives, 0 while one does. `still_s`: for how long the run has used neither
    CPU nor GPU. `card_idle_s`: for how long its cards have computed nothing.
    """

    gone_s: float | None = None
    still_s: float | None = None
    card_idle_s: float | None = None


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long each sign must last (in seconds). `silent_s` is `heartbeat.timeout`, `cycle_s` a wait for each other."""

    gone_s: float = 30.0
    silent_s: float = 300.0
    idle_s: float = 300.0
    cycle_s: float = 60.0


class Suspicion(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that may be dead: since when (in seconds), why in words, and how many wait for its gpus."""

    kind: Kind
    lease: str
    task: str
    gpus: tuple[str, ...]
    for_s: float
    waiting: int
    why: str


NOTHING_SEEN = Evidence()


def suspicions(
    snapshot: Snapshot, seen: Mapping[str, Evidence], patience: Patience | None = None
) -> tuple[Suspicion, ...]:
    """Return what looks dead, at most one suspicion a lease, in the order of the leases.

    :param seen: lease -> what is seen of it; a lease that is missing cannot be seen
    """
    patience = patience or Patience()
    seating = Seating.of(snapshot)
    wanted = [seating.could_use(Wants.parse(ticket.wants)) for ticket in present(snapshot)]
    entangled = _entangled(snapshot)
    waited_s = _longest_waits_s(snapshot)
    found = []
    for lease in holders(snapshot):
        if lease.state != "held":
            continue
        waiting = sum(not keys.isdisjoint(lease.gpus) for keys in wanted)
        cycle_s = waited_s[lease.session] if lease.session in entangled else None
        one = _of(lease, seen.get(lease.id, NOTHING_SEEN), patience, waiting, cycle_s)
        if one is not None:
            found.append(one)
    return tuple(found)


def _of(
    lease: TicketRecord, seen: Evidence, patience: Patience, waiting: int, cycle_s: float | None
) -> Suspicion | None:
    def suspect(kind: Kind, for_s: float, why: str) -> Suspicion:
        return Suspicion(
            kind=kind, lease=lease.id, task=lease.job.task, gpus=lease.gpus, for_s=for_s, waiting=waiting, why=why
        )

    if seen.gone_s is not None and seen.gone_s >= patience.gone_s:
        return suspect("holder_gone", seen.gone_s, f"no process of it has lived for {format_duration(seen.gone_s)}")
    silent_s = _silent_s(lease, seen)
    if silent_s is not None and silent_s >= patience.silent_s:
        return suspect("stalled", silent_s, f"no heartbeat and no work for {format_duration(silent_s)}")
    idle_s = seen.card_idle_s
    if cycle_s is not None and min(cycle_s, cycle_s if idle_s is None else idle_s) >= patience.cycle_s:
        return suspect("cycle", cycle_s, "it waits for a GPU of a holder that waits for this one")
    if waiting and idle_s is not None and min(idle_s, lease.held_ms / 1000) >= patience.idle_s:
        return suspect("idle", idle_s, f"its GPU has done nothing for {format_duration(idle_s)} while {waiting} wait")
    return None


def _silent_s(lease: TicketRecord, seen: Evidence) -> float | None:
    """Return for how long nothing was heard of a lease and it did no work (in seconds), None if that cannot be said.

    A task that reports its heartbeats itself is silent when it does not. Any other is heard by the keepalives of its
    process; when those are missing the body may only block everything, so such a run must besides have done no work.
    """
    if lease.job.heartbeat == "manual":
        age_ms = lease.held_ms if lease.heartbeat_age_ms is None else lease.heartbeat_age_ms
        return age_ms / 1000
    if lease.seen_age_ms is None or seen.still_s is None:
        return None
    return min(lease.seen_age_ms / 1000, seen.still_s)


def _longest_waits_s(snapshot: Snapshot) -> dict[str, float]:
    """Return how long each session has waited for something (in seconds)."""
    waits: dict[str, float] = {}
    for ticket in present(snapshot):
        waits[ticket.session] = max(waits.get(ticket.session, 0.0), ticket.waited_ms / 1000)
    return waits


def _entangled(snapshot: Snapshot) -> frozenset[str]:
    """Return the sessions that hold gpus and wait for more, and cannot go on by what all others will release.

    The detection of Coffman, Elphick and Shoshani (1971): let everybody go who can, as often as somebody can; who is
    left waits for each other. Another thread of a program may still give a lease back while one waits, so the signs
    must last.
    """
    held: dict[str, list[TicketRecord]] = {}
    for lease in holders(snapshot):
        held.setdefault(lease.session, []).append(lease)
    asked: dict[str, list[Wants]] = {}
    for ticket in present(snapshot):
        if ticket.session in held:
            asked.setdefault(ticket.session, []).append(Wants.parse(ticket.wants))
    seating = Seating.of(snapshot)

    def stand_up(session: str) -> None:
        for lease in held[session]:
            seating.rise(lease.id, lease.gpus)

    def sit_down(session: str) -> None:
        for lease in held[session]:
            seating.sit(lease.id, Wants.parse(lease.wants), lease.gpus)

    stuck = set(asked)
    for session in set(held) - stuck:
        stand_up(session)
    gone = True
    while gone:
        gone = False
        for session in sorted(stuck):
            # What a program waits for from itself it gives from another of its threads.
            stand_up(session)
            if all(seating.find(wants) is not None for wants in asked[session]):
                stuck.discard(session)
                gone = True
            else:
                sit_down(session)
    return frozenset(stuck)
