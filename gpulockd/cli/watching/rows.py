"""How a picture reads: rows of cards, of the queue and of events, and one whole frame as text. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gpulockd.cli.records import Record, name_of, seconds, starts, task_of, wants_of
from gpulockd.cli.talk import fitted, shortened, table
from gpulockd.cli.watching.picture import Picture
from gpulockd.units import clean

CARDS = ("GPU", "STATE", "HOLDER", "AGE", "DONE", "MEMORY", "BUSY", "TEMP")
LINE = ("PLACE", "TASK", "WANTS", "WAITED", "STARTS")
NONE = "–"
SHOWN_EVENTS = 8

LEVELS = {"warning": "warned", "soft": "asked to stop", "hard": "being ended"}


@dataclass(frozen=True)
class CardRow:
    """One card and one holder, or none: what is shown, what it is sorted by, and what a key would act on."""

    cells: tuple[str, ...]
    mood: str
    key: str
    lease: str
    task: str
    state: str
    age_s: float
    used: float


SORTS: dict[str, Callable[[CardRow], Any]] = {
    "gpu": lambda row: 0,
    "age": lambda row: -row.age_s,
    "memory": lambda row: -row.used,
    "state": lambda row: (row.mood != "bad", row.mood != "warn", row.state),
}
"""The orders of the cards, each stable over the order of the gpus."""


def cards(picture: Picture, sort: str = "gpu") -> list[CardRow]:
    """Return a row for each holder of a card, and one for each card that nobody has."""
    rows = []
    for gpu in picture.gpus:
        for i, lease in enumerate(picture.holders(gpu["key"]) or [None]):
            rows.append(_card(gpu, lease, picture.passed_s, is_first=i == 0))
    return sorted(rows, key=SORTS[sort])


def _card(gpu: Record, lease: Record | None, passed_s: float, *, is_first: bool) -> CardRow:
    told = gpu.get("reading") or {}
    state, mood = _state(gpu, lease, passed_s)
    held_s = lease["held_s"] + passed_s if lease else 0.0
    hardware = (_memory(told), _share(told.get("utilization")), _degrees(told.get("temperature_c")))
    holder = task_of(lease) if lease else ""
    done = lease.get("percent") if lease else None
    cells = (
        name_of(gpu["key"]) if is_first else "",
        state,
        f"{holder} ({clean(lease['note'])})" if lease and lease.get("note") else holder,
        _age(lease, held_s),
        "" if done is None else f"{done:.0f} %",
        *(hardware if is_first else ("", "", "")),
    )
    total = told.get("total_mib") or 0
    used = (told.get("used_mib") or 0) / total if total else 0.0
    return CardRow(cells, mood, gpu["key"], lease["id"] if lease else "", holder, state, held_s, used)


def _state(gpu: Record, lease: Record | None, passed_s: float) -> tuple[str, str]:
    """The word and its mood: good, warn, bad or idle."""
    if gpu.get("state") != "ready":
        return str(gpu.get("state")), "warn" if gpu.get("state") in ("settling", "drained") else "bad"
    if lease is None:
        return "free", "idle"
    limits = lease.get("limits") or {}
    held_s = lease["held_s"] + passed_s
    if lease.get("level") in LEVELS or held_s >= limits.get("warning_s", float("inf")):
        is_late = lease.get("level") in ("soft", "hard") or held_s >= limits.get("soft_s", float("inf"))
        return "late" if is_late else "long", "bad" if is_late else "warn"
    shared = 0 < (gpu.get("used_mib") or 0) < (gpu.get("memory_mib") or 0)
    return "shared" if shared else "held", "good"


def _age(lease: Record | None, held_s: float) -> str:
    """How long it is held, against the limit that comes next."""
    if lease is None:
        return ""
    limits = lease.get("limits") or {}
    for name in ("warning_s", "soft_s", "hard_s"):
        if held_s < limits.get(name, 0.0):
            return f"{_whole(held_s)} of {_whole(limits[name])}"
    return f"{_whole(held_s)}, over" if limits else _whole(held_s)


def _whole(value_s: float) -> str:
    return seconds(float(max(10, value_s))) if value_s >= 10 else f"{int(value_s)} s"


def _memory(told: Record) -> str:
    used, total = told.get("used_mib"), told.get("total_mib")
    return NONE if used is None or not total else f"{used / 1024:.0f}/{total / 1024:.0f} GiB"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def _degrees(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}°C"


def line(picture: Picture, width: int | None = None) -> list[str]:
    """Return the queue as lines: a head, and for each place what it wants and, below it, why it has nothing yet.

    :param width: how long a line may be, None for no limit
    """
    lines = [_place(*LINE)]
    for ticket in picture.queue:
        waited = _whole(ticket["waited_s"] + picture.passed_s)
        lines.append(_place(str(ticket.get("place") or ""), task_of(ticket), wants_of(ticket), waited, starts(ticket)))
        lines += [f"      {clean(ticket['why'])}"] if ticket.get("why") else []
    if picture.queued > len(picture.queue):
        lines.append(f"and {picture.queued - len(picture.queue)} more")
    return [text if width is None else shortened(text, width) for text in lines]


def _place(place: str, task: str, wants: str, waited: str, begins: str) -> str:
    cells = f"{place:<6}{shortened(task, 24):<26}{shortened(wants, 19):<21}{waited:<9}{begins}"
    return cells.rstrip()


def head(picture: Picture) -> str:
    """Return what the pool is in one line."""
    pool = picture.pool
    busy = sum(bool(picture.holders(gpu["key"])) for gpu in picture.gpus)
    said = f"pool {pool.get('pool', '?')} on {pool.get('host', '?')}  {busy} of {len(picture.gpus)} GPUs held"
    said += f"  {picture.queued} waiting"
    if pool.get("frozen_s"):
        said += f"  grants nothing for {seconds(pool['frozen_s'])}: {pool.get('frozen_why')}"
    return clean(said)


def happened(event: Record) -> str:
    """Return an event in one line."""
    at = time.strftime("%H:%M:%S", time.localtime(event.get("at_ms", 0) / 1000))
    facts = [f"GPU {', '.join(name_of(key) for key in event['gpus'])}"] if event.get("gpus") else []
    facts += [clean(str(event[name])) for name in ("task", "reason", "message") if event.get(name)]
    facts += [f"held {seconds(event['held_ms'] / 1000)}"] if event.get("held_ms") is not None else []
    return f"{at}  {str(event.get('type', 'event')).replace('_', ' '):<16}  {'  '.join(facts)}".rstrip()


def frame(picture: Picture, events: Sequence[Record], sort: str = "gpu") -> str:
    """Return all of it as text."""
    rows = cards(picture, sort)
    parts = [head(picture)]
    parts += [table(CARDS, [row.cells for row in rows], shrink=("HOLDER",)) if rows else "no GPU is offered here"]
    parts += ["\n".join(line(picture)) if picture.queue else "nobody waits"]
    shown = [fitted(happened(event), clean(str(event.get("task") or ""))) for event in events[-SHOWN_EVENTS:]]
    parts += ["\n".join(shown)] if shown else []
    return "\n\n".join(parts)
