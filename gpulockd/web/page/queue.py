"""The queue: who is next, why not now, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from gpulockd.ledger.forecast import FEWEST_HOLDS, Expected
from gpulockd.model import Snapshot, TicketRecord, Wants
from gpulockd.web.page.cards import who
from gpulockd.web.page.words import age, clock, gpu_names, job_name, short

MOST_ROWS = 100
NAMED = 2
UNKNOWN_START = (
    f"–: not known yet. It takes {FEWEST_HOLDS} finished holds of each task before it that has no time of its own, "
    "and a holder that does not outlast them all."
)


class Block(msgspec.Struct, frozen=True):
    """What is in somebody's way. `seconds`: for how long, which counts "up" or "down"."""

    text: str
    seconds: float | None = None
    counts: str = "up"

    def __str__(self) -> str:
        return self.text if self.seconds is None else f"{self.text} for {age(self.seconds)}"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One place in the queue."""

    place: int
    name: str
    who: str
    wants: str
    priority: str
    aged: str
    waited_s: float
    starts: str
    why: tuple[Block, ...]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The queue: its first places, how many there are in all, and what its order means.

    `unknown`: what a start that is not known would need.
    """

    queued: int
    places: tuple[Place, ...]
    more: int
    held_back: str
    step: str
    unknown: str


def line(snapshot: Snapshot, starts: Mapping[str, Expected | None], now_ms: int, priority_step_s: float) -> Line:
    """Return the queue of a snapshot.

    :param starts: when each ticket is expected to begin
    :param now_ms: the wall clock, for moments
    :param priority_step_s: how much waiting one point of priority is worth (in seconds)
    """
    shown = snapshot.queue[:MOST_ROWS]
    kept = [ticket for ticket in snapshot.queue if ticket.chosen]
    why = _blocked(snapshot)
    unknown = any(starts.get(ticket.id) is None for ticket in shown)
    return Line(
        queued=snapshot.queued,
        places=tuple(
            _place(ticket, starts.get(ticket.id), why[ticket.id], now_ms, priority_step_s) for ticket in shown
        ),
        more=max(0, snapshot.queued - len(shown)),
        held_back="; ".join(f"{gpu_names(ticket.chosen)} kept free for {job_name(ticket.job)}" for ticket in kept),
        step=short(priority_step_s),
        unknown=UNKNOWN_START if unknown else "",
    )


def reasons(snapshot: Snapshot) -> dict[str, str]:
    """Return why each of the queue has nothing yet, by its id; the snapshot begins with the head of the queue."""
    return {id: "; ".join(map(str, why)) for id, why in _blocked(snapshot).items()}


def _blocked(snapshot: Snapshot) -> dict[str, tuple[Block, ...]]:
    blocks = {wants: _blocks(Wants.parse(wants), snapshot) for wants in {ticket.wants for ticket in snapshot.queue}}
    ahead: Counter[str] = Counter()
    found = {}
    for ticket in snapshot.queue:
        found[ticket.id] = _why(ticket, snapshot, ahead[ticket.wants], blocks[ticket.wants])
        ahead[ticket.wants] += 1
    return found


def _place(
    ticket: TicketRecord, starts: Expected | None, why: tuple[Block, ...], now_ms: int, priority_step_s: float
) -> Place:
    waited_s = ticket.waited_ms / 1000
    aged = ticket.priority + (waited_s / priority_step_s if priority_step_s > 0 else 0)
    return Place(
        place=ticket.place or 0,
        name=job_name(ticket.job),
        who=who(ticket),
        wants=str(Wants.parse(ticket.wants)),
        priority=str(ticket.priority),
        aged="" if round(aged) == ticket.priority else f"{aged:.0f}",
        waited_s=waited_s,
        starts="" if starts is None else clock(now_ms + starts.middle_s * 1000, seconds=starts.middle_s < 120),
        why=why,
    )


def _why(ticket: TicketRecord, snapshot: Snapshot, ahead: int, blocks: list[Block]) -> tuple[Block, ...]:
    """Say why it has nothing yet.

    :param ahead: how many before it want the same
    :param blocks: what is in the way of such wants
    """
    if ticket.state == "away":
        return (Block("its program does not answer; it keeps its place"),)
    if snapshot.frozen_ms:
        return (Block("nothing is granted", snapshot.frozen_ms / 1000, "down"),)
    if ticket.chosen:
        return (Block(f"{gpu_names(ticket.chosen)} kept free for it"),)
    said = [Block(f"behind {ahead} that want the same"), *blocks] if ahead else blocks
    more = [Block(f"and {len(said) - NAMED} more")] if len(said) > NAMED else []
    return (*said[:NAMED], *more)


def _blocks(wants: Wants, snapshot: Snapshot) -> list[Block]:
    found: list[Block] = []
    for record in snapshot.gpus:
        if wants.keys and record.gpu.key not in wants.keys:
            continue
        if record.state != "ready":
            found.append(Block(f"{record.gpu} is {record.state}"))
            continue
        found += [
            Block(f"{record.gpu} held by {job_name(lease.job)}", lease.held_ms / 1000)
            for lease in snapshot.leases
            if record.gpu.key in lease.gpus and lease.state != "member"
        ]
    return found
