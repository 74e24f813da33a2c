"""The head of the page: is anything wrong?"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gpulockd.model import Snapshot
from gpulockd.units import format_duration
from gpulockd.web.page.words import GLYPHS

SESSIONS = "programs that hold or wait for a GPU of this pool, and its daemons"


class Pill(msgspec.Struct, frozen=True):
    """One fact of the head, with its mood; `href`: where more of it stands, `hint`: what it means."""

    mood: str
    text: str
    href: str = ""
    hint: str = ""

    @property
    def glyph(self) -> str:
        """The shape of its mood."""
        return GLYPHS[self.mood]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How the pool is: "running", "idle" or "stalled", and in `troubles` what must be said above all else."""

    state: Pill
    pills: tuple[Pill, ...]
    troubles: tuple[str, ...]


def status(snapshot: Snapshot | None, reasons: Sequence[str], store_s: float, alerts: Sequence[str]) -> Status:
    """Return the head.

    :param snapshot: None: the store is away
    :param reasons: why the daemon is not ready
    :param store_s: how long the store took to answer (in seconds)
    :param alerts: the levels of the active alerts
    """
    troubles = list(reasons)
    if snapshot is None:
        troubles.append("The store does not answer: nothing below is of this moment. The daemon tries again by itself.")
        return Status(state=Pill("bad", "stalled"), pills=(Pill("bad", "store away"),), troubles=tuple(troubles))
    if snapshot.frozen_ms:
        why = f" ({snapshot.frozen_why})" if snapshot.frozen_why else ""
        troubles.append(f"Nothing is granted for {format_duration(snapshot.frozen_ms / 1000)} more{why}.")
    pills = (
        Pill("good" if store_s < 0.1 else "warn", f"store {1000 * store_s:.1f} ms"),
        Pill("good" if snapshot.sessions else "idle", f"{_many(snapshot.sessions, 'session')} alive", hint=SESSIONS),
        _alerts(alerts),
    )
    return Status(state=_state(snapshot, troubles), pills=pills, troubles=tuple(troubles))


def _state(snapshot: Snapshot, troubles: Sequence[str]) -> Pill:
    if troubles:
        return Pill("bad", "stalled")
    if any(lease.state != "member" for lease in snapshot.leases):
        return Pill("good", "running")
    if snapshot.queued:
        unusable = [str(record.gpu) for record in snapshot.gpus if record.state != "ready"]
        return Pill("bad", f"stalled: {', '.join(unusable)} cannot be used" if unusable else "stalled")
    return Pill("idle", "idle")


def _alerts(levels: Sequence[str]) -> Pill:
    if not levels:
        return Pill("good", "no alert", "#part-alerts")
    critical = sum(level == "critical" for level in levels)
    if critical:
        return Pill("bad", f"{critical} critical", "#part-alerts")
    return Pill("warn", _many(len(levels), "warning"), "#part-alerts")


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
