"""The queue: who is next, why not now, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from gpulockd.ledger.forecast import Expected
from gpulockd.model import Snapshot, TicketRecord, Wants
from gpulockd.units import format_duration
from gpulockd.web.page.cards import who
from gpulockd.web.page.words import age, clock, gpu_names, job_name, short

MOST_ROWS = 100
NAMED = 2


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
    why: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """The queue: its first places, how many there are in all, and what its order means."""

    queued: int
    places: tuple[Place, ...]
    more: int
    held_back: str
    step: str


def line(snapshot: Snapshot, starts: Mapping[str, Expected | None], now_ms: int, priority_step_s: float) -> Line:
    """Return the queue of a snapshot.

    :param starts: when each ticket is expected to begin
    :param now_ms: the wall clock, for moments
    :param priority_step_s: how much waiting one point of priority is worth (in seconds)
    """
    shown = snapshot.queue[:MOST_ROWS]
    kept = [ticket for ticket in snapshot.queue if ticket.chosen]
    blocks = {wants: _blocks(Wants.parse(wants), snapshot) for wants in {ticket.wants for ticket in shown}}
    ahead: Counter[str] = Counter()
    places = []
    for ticket in shown:
        why = _why(ticket, snapshot, ahead[ticket.wants], blocks[ticket.wants])
        places.append(_place(ticket, starts.get(ticket.id), why, now_ms, priority_step_s))
        ahead[ticket.wants] += 1
    return Line(
        queued=snapshot.queued,
        places=tuple(places),
        more=max(0, snapshot.queued - len(shown)),
        held_back="; ".join(f"{gpu_names(ticket.chosen)} kept free for {job_name(ticket.job)}" for ticket in kept),
        step=short(priority_step_s),
    )


def _place(ticket: TicketRecord, starts: Expected | None, why: str, now_ms: int, priority_step_s: float) -> Place:
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


def _why(ticket: TicketRecord, snapshot: Snapshot, ahead: int, blocks: list[str]) -> str:
    """Say why it has nothing yet.

    :param ahead: how many before it want the same
    :param blocks: what is in the way of such wants
    """
    if ticket.state == "away":
        return "its program does not answer; it keeps its place"
    if snapshot.frozen_ms:
        return f"nothing is granted for {format_duration(snapshot.frozen_ms / 1000)}"
    if ticket.chosen:
        return f"{gpu_names(ticket.chosen)} kept free for it"
    said = [f"behind {ahead} that want the same", *blocks] if ahead else blocks
    text = "; ".join(said[:NAMED])
    return text + (f"; and {len(said) - NAMED} more" if len(said) > NAMED else "")


def _blocks(wants: Wants, snapshot: Snapshot) -> list[str]:
    texts = []
    for record in snapshot.gpus:
        if wants.keys and record.gpu.key not in wants.keys:
            continue
        if record.state != "ready":
            texts.append(f"{record.gpu} is {record.state}")
            continue
        texts += [
            f"{record.gpu} held by {job_name(lease.job)} for {age(lease.held_ms / 1000)}"
            for lease in snapshot.leases
            if record.gpu.key in lease.gpus and lease.state != "member"
        ]
    return texts
