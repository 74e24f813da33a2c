"""What becomes of alerts: inactive -> pending -> active -> resolved. Pure; moments are of the store's wall clock (ms).

An alert is told once when it is raised, once more when nobody reacts (escalated), and once when it is over. Who
acknowledges it ends the escalation; who silences it hears nothing until the silence is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from gpulockd.alerting.facts import Seen
from gpulockd.alerting.rules import Level, Rule

State = Literal["pending", "active", "resolved"]
Kind = Literal["raised", "escalated", "resolved"]
Status = Literal["healthy", "warning", "critical"]


class Alert(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule that is, or was, true of one pool.

    `since_ms`: since when the condition is true; `clear_ms`: since when it is not, although the alert still stands.
    `times`: how often it was raised while this record stands. `told`: somebody was told of the present time.
    """

    pool: str
    rule: str
    level: Level
    message: str
    state: State
    since_ms: int
    detail: str = ""
    raised_ms: int | None = None
    clear_ms: int | None = None
    resolved_ms: int | None = None
    times: int = 0
    told: bool = False
    told_ms: int | None = None
    escalated_ms: int | None = None
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    note: str = ""

    @property
    def id(self) -> str:
        """What commands and routes call it: "<pool>:<rule>"."""
        return f"{self.pool}:{self.rule}"

    @property
    def severity(self) -> Level:
        """Its level; one that was escalated is critical."""
        return "critical" if self.escalated_ms is not None else self.level


class Silence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Nothing is told of a rule ("*": of any) of a pool ("*": of any) until a moment."""

    rule: str
    pool: str = "*"
    until_ms: int = 0
    by: str = ""
    note: str = ""

    @property
    def id(self) -> str:
        """Its name: one silence a rule and pool."""
        return f"{self.pool}:{self.rule}"

    def covers(self, pool: str, rule: str, now_ms: int) -> bool:
        """Whether nothing is told of that rule of that pool now."""
        return now_ms < self.until_ms and self.rule in ("*", rule) and self.pool in ("*", pool)


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long to wait (in seconds): until a condition that is no longer true ends its alert, until an alert to that
    nobody reacts is escalated (0: never), and until one that is over is forgotten."""

    resolve_after_s: float = 60.0
    escalate_after_s: float = 900.0
    keep_s: float = 86_400.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one alert: as it is `now` (None: forgotten), and what is to be told of it.

    `told_to_people`: False for what a silence keeps from them; it stands in the stream all the same.
    """

    id: str
    now: Alert | None
    tell: Kind | None = None
    told_to_people: bool = True


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """What stands: alerts by id, and silences."""

    alerts: Mapping[str, Alert] = {}
    silences: Sequence[Silence] = ()

    def is_silent(self, pool: str, rule: str, now_ms: int) -> bool:
        """Whether a silence covers that rule of that pool now."""
        return any(silence.covers(pool, rule, now_ms) for silence in self.silences)


def judge(
    pool: str, rules: Iterable[Rule], seen: Seen, book: Book, now_ms: int, patience: Patience, *, whole: bool = True
) -> tuple[Step, ...]:
    """Return what becomes of the alerts of a pool; what stays as it is has no step.

    :param whole: these are all rules of the pool, so an alert of any other is over
    """
    steps, names = [], set()
    for rule in rules:
        names.add(rule.name)
        before = book.alerts.get(f"{pool}:{rule.name}")
        held = rule.condition.holds(seen.values)
        detail = seen.told(rule.condition.names) if held else ""
        silent = book.is_silent(pool, rule.name, now_ms)
        steps.append(_step(_Case(pool, rule, before, detail, silent), held, now_ms, patience))
    if whole:
        dropped = [alert for alert in book.alerts.values() if alert.pool == pool and alert.rule not in names]
        steps += [_off(alert, now_ms, patience, at_once=True) for alert in dropped]
    return tuple(step for step in steps if step is not None)


class _Case(msgspec.Struct, frozen=True):
    """One rule of a pool: what it was before, what explains it, and whether a silence covers it."""

    pool: str
    rule: Rule
    before: Alert | None
    detail: str
    silent: bool


def _step(case: _Case, held: bool | None, now_ms: int, patience: Patience) -> Step | None:
    before = case.before
    if held is None:
        return None  # what is not known changes nothing
    if not held:
        return None if before is None else _off(before, now_ms, patience)
    if before is None or before.state == "resolved":
        begun = Alert(
            pool=case.pool,
            rule=case.rule.name,
            level=case.rule.level,
            message=case.rule.message,
            state="pending",
            since_ms=now_ms,
            detail=case.detail,
            times=before.times if before else 0,
            told_ms=before.told_ms if before else None,
        )
        return _pending(case, begun, now_ms, new=True)
    if before.state == "pending":
        return _pending(case, before, now_ms, new=False)
    return _active(case, before, now_ms, patience)


def _pending(case: _Case, alert: Alert, now_ms: int, *, new: bool) -> Step | None:
    if now_ms - alert.since_ms < case.rule.for_s * 1000:
        return Step(id=alert.id, now=alert) if new else None
    raised = msgspec.structs.replace(
        alert,
        state="active",
        level=case.rule.level,
        message=case.rule.message,
        raised_ms=now_ms,
        times=alert.times + 1,
        detail=case.detail,
        told=not case.silent,
        told_ms=alert.told_ms if case.silent else now_ms,
    )
    return Step(id=alert.id, now=raised, tell="raised", told_to_people=not case.silent)


def _active(case: _Case, alert: Alert, now_ms: int, patience: Patience) -> Step | None:
    """The condition of an active alert is still true."""
    changed = alert
    if alert.clear_ms is not None:
        changed = msgspec.structs.replace(alert, clear_ms=None, detail=case.detail)
    level, message = case.rule.level, case.rule.message
    if (level, message) != (alert.level, alert.message):
        changed = msgspec.structs.replace(changed, level=level, message=message)
    if not case.silent and alert.acknowledged_ms is None:
        if not alert.told:
            # The silence is over and it still stands, so it is told now.
            told = msgspec.structs.replace(changed, told=True, told_ms=now_ms, detail=case.detail)
            return Step(id=alert.id, now=told, tell="raised")
        due_ms = (alert.told_ms or now_ms) + patience.escalate_after_s * 1000
        if _may_escalate(alert, patience) and now_ms >= due_ms:
            escalated = msgspec.structs.replace(changed, escalated_ms=now_ms, detail=case.detail)
            return Step(id=alert.id, now=escalated, tell="escalated")
    return None if changed == alert else Step(id=alert.id, now=changed)


def _off(alert: Alert, now_ms: int, patience: Patience, *, at_once: bool = False) -> Step | None:
    """The condition is not true."""
    if alert.state == "pending":
        return Step(id=alert.id, now=None)
    if alert.state == "resolved":
        over = now_ms - (alert.resolved_ms or 0) >= patience.keep_s * 1000
        return Step(id=alert.id, now=None) if over else None
    clear_ms = now_ms if alert.clear_ms is None else alert.clear_ms
    if not at_once and now_ms - clear_ms < patience.resolve_after_s * 1000:
        cleared = msgspec.structs.replace(alert, clear_ms=clear_ms)
        return Step(id=alert.id, now=cleared) if alert.clear_ms is None else None
    resolved = msgspec.structs.replace(alert, state="resolved", resolved_ms=now_ms, clear_ms=None)
    return Step(id=alert.id, now=resolved, tell="resolved", told_to_people=alert.told)


def book_after(book: Book, steps: Iterable[Step]) -> Book:
    """Return the book as it is after these steps."""
    alerts = dict(book.alerts)
    for step in steps:
        if step.now is None:
            alerts.pop(step.id, None)
        else:
            alerts[step.id] = step.now
    return Book(alerts=alerts, silences=book.silences)


def due_in_s(book: Book, rules: Iterable[Rule], now_ms: int, patience: Patience) -> float | None:
    """Return after what time (in seconds) something becomes of an alert although nothing happens; None: never."""
    waits_s = {rule.name: rule.for_s for rule in rules}
    due_ms: list[float] = [silence.until_ms for silence in book.silences]
    for alert in book.alerts.values():
        if alert.state == "pending":
            due_ms.append(alert.since_ms + waits_s.get(alert.rule, 0.0) * 1000)
        elif alert.state == "active" and alert.clear_ms is not None:
            due_ms.append(alert.clear_ms + patience.resolve_after_s * 1000)
        elif alert.state == "active" and _may_escalate(alert, patience):
            due_ms.append((alert.told_ms or now_ms) + patience.escalate_after_s * 1000)
    later_s = [(moment - now_ms) / 1000 for moment in due_ms if moment > now_ms]
    return min(later_s, default=None)


def _may_escalate(alert: Alert, patience: Patience) -> bool:
    waits = alert.told and alert.escalated_ms is None and alert.acknowledged_ms is None
    return waits and patience.escalate_after_s > 0


def acknowledged(alert: Alert, by: str, note: str, now_ms: int) -> Alert:
    """Return the alert as somebody has taken it on; who took it on first stands."""
    if alert.acknowledged_ms is not None:
        return alert
    return msgspec.structs.replace(alert, acknowledged_ms=now_ms, acknowledged_by=by[:64], note=note[:500])


def overall_status(alerts: Iterable[Alert]) -> Status:
    """Return the worst of what is active: "healthy" without any alert."""
    levels = {alert.severity for alert in alerts if alert.state == "active"}
    return "critical" if "critical" in levels else "warning" if levels else "healthy"
