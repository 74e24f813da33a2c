"""Alerts as the store has them: JSON read into values, and lines for the history."""

from __future__ import annotations

from typing import Literal

import msgspec

from gpulockd.alerting.judging import Alert, Book, Silence
from gpulockd.alerting.rules import Level
from gpulockd.ledger.alerts import Stored

What = Literal["raised", "escalated", "resolved", "acknowledged"]


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the history: what happened to which alert, when (wall clock, ms), and by whom."""

    at_ms: int
    what: What
    pool: str
    rule: str
    level: Level = "warning"
    message: str = ""
    detail: str = ""
    by: str = ""


def book_of(stored: Stored) -> Book:
    """Return alerts and silences; what another version has written is passed over."""
    alerts = {}
    for id, kept in stored.alerts.items():
        try:
            alerts[id] = msgspec.json.decode(kept.json, type=Alert)
        except msgspec.MsgspecError:
            continue
    silences = []
    for kept in stored.silences.values():
        try:
            silence = msgspec.json.decode(kept.json, type=Silence)
        except msgspec.MsgspecError:
            continue
        if kept.number > stored.wall_ms:
            silences.append(msgspec.structs.replace(silence, until_ms=kept.number))
    return Book(alerts=alerts, silences=tuple(silences))


def line_of(alert: Alert, what: What, at_ms: int, by: str = "") -> bytes:
    """Return the line that says what became of an alert."""
    line = Line(
        at_ms=at_ms,
        what=what,
        pool=alert.pool,
        rule=alert.rule,
        level=alert.severity,
        message=alert.message,
        detail=alert.detail,
        by=by,
    )
    return msgspec.json.encode(line)


def history_of(stored: Stored) -> tuple[Line, ...]:
    """Return the lines of the history that can be read, the latest first."""
    found = []
    for json in stored.history:
        try:
            found.append(msgspec.json.decode(json, type=Line))
        except msgspec.MsgspecError:
            continue
    return tuple(found)
