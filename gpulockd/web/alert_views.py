"""What the routes and the command say of alerts: moments in unix seconds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import msgspec

from gpulockd.alerting.judging import Alert, Book, Silence, overall_status
from gpulockd.alerting.records import book_of, history_of
from gpulockd.ledger.alerts import Stored

STREAM = "event"
"""The name of the channel that is the pool's own stream of events, which no configuration names."""

REMOVED = "removed"
"""The kind of a channel that its pool's configuration has no more."""


class AlertView(msgspec.Struct, frozen=True, kw_only=True):
    """One alert. `level` is what it is worth now: one that was escalated is critical. Moments are unix seconds."""

    id: str
    pool: str
    rule: str
    level: str
    state: str
    message: str
    detail: str
    since: float
    raised_at: float | None
    resolved_at: float | None
    times: int
    escalated: bool
    silenced: bool
    acknowledged_at: float | None
    acknowledged_by: str
    note: str


class SilenceView(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is told of a rule of a pool ("*": of any) until a moment (unix seconds)."""

    id: str
    rule: str
    pool: str
    until: float
    by: str
    note: str


class ChannelView(msgspec.Struct, frozen=True, kw_only=True):
    """A channel: when it last took a message, when not, and why not (unix seconds).

    `configured` false: its configuration has it no more, yet `untold` notices of it are left.
    """

    name: str
    pool: str
    kind: str
    answered_at: float | None
    failed_at: float | None
    error: str
    configured: bool = True
    untold: int = 0


class AlertLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the history: what happened to an alert, when (unix seconds), by whom."""

    at: float
    what: str
    pool: str
    rule: str
    level: str
    message: str
    detail: str
    by: str


class AlertsView(msgspec.Struct, frozen=True, kw_only=True):
    """All alerts of the fleet, the worst first. `overall_status` is this pool's; `untold`: notices still to be
    sent, over channels that there are."""

    pool: str
    overall_status: str
    alerts: tuple[AlertView, ...]
    silences: tuple[SilenceView, ...]
    channels: tuple[ChannelView, ...]
    untold: int
    history: tuple[AlertLine, ...]


class KnownChannel(msgspec.Struct, frozen=True, kw_only=True):
    """What the store has of a channel; moments in ms."""

    kind: str = ""
    ok_ms: int | None = None
    failed_ms: int | None = None
    error: str = ""


def alerts_view(pool: str, stored: Stored, configured: Mapping[str, str] | None = None) -> AlertsView:
    """Return all of it, as the store has it.

    :param configured: the channels of this pool, by name with their kinds, listed before their first message too;
        None: they are not known
    """
    book = book_of(stored)
    listed = [alert_view(alert, book, stored.wall_ms) for alert in book.alerts.values()]
    order = {"active": 0, "pending": 1, "resolved": 2}
    listed.sort(key=lambda one: (order[one.state], one.level != "critical", one.pool != pool, -one.since, one.id))
    channels = _channels(pool, stored, configured)
    lines = [
        AlertLine(
            at=line.at_ms / 1000,
            what=line.what,
            pool=line.pool,
            rule=line.rule,
            level=line.level,
            message=line.message,
            detail=line.detail,
            by=line.by,
        )
        for line in history_of(stored)
    ]
    return AlertsView(
        pool=pool,
        overall_status=overall_status(alert for alert in book.alerts.values() if alert.pool == pool),
        alerts=tuple(listed),
        silences=tuple(silence_view(one) for one in book.silences),
        channels=channels,
        untold=sum(channel.untold for channel in channels if channel.configured),
        history=tuple(lines),
    )


def _channels(pool: str, stored: Stored, configured: Mapping[str, str] | None) -> tuple[ChannelView, ...]:
    """Return the channels that there are, and those that are removed and have left something untold."""
    own = {f"{pool}|{name}": KnownChannel(kind=kind) for name, kind in (configured or {}).items()}
    known = dict(own)
    for name, kept in stored.channels.items():
        with suppress(msgspec.MsgspecError):
            known[name] = msgspec.json.decode(kept.json, type=KnownChannel)
    found = []
    for name in sorted({*known, *stored.untold}):
        channel, untold = known.get(name, KnownChannel()), stored.untold.get(name, 0)
        is_own = configured is not None and name.startswith(f"{pool}|") and not name.endswith(f"|{STREAM}")
        there = name in own if is_own else channel.kind != REMOVED
        if there or untold:
            view = channel_view(name, channel)
            found.append(msgspec.structs.replace(view, configured=there, untold=untold))
    return tuple(found)


def alert_view(alert: Alert, book: Book, now_ms: int) -> AlertView:
    """Return one alert as the routes show it."""
    return AlertView(
        id=alert.id,
        pool=alert.pool,
        rule=alert.rule,
        level=alert.severity,
        state=alert.state,
        message=alert.message,
        detail=alert.detail,
        since=alert.since_ms / 1000,
        raised_at=_seconds(alert.raised_ms),
        resolved_at=_seconds(alert.resolved_ms),
        times=alert.times,
        escalated=alert.escalated_ms is not None,
        silenced=book.is_silent(alert.pool, alert.rule, now_ms),
        acknowledged_at=_seconds(alert.acknowledged_ms),
        acknowledged_by=alert.acknowledged_by,
        note=alert.note,
    )


def silence_view(silence: Silence) -> SilenceView:
    return SilenceView(
        id=silence.id,
        rule=silence.rule,
        pool=silence.pool,
        until=silence.until_ms / 1000,
        by=silence.by,
        note=silence.note,
    )


def channel_view(name: str, known: KnownChannel) -> ChannelView:
    pool, _, channel = name.partition("|")
    return ChannelView(
        name=channel,
        pool=pool,
        kind=known.kind,
        answered_at=_seconds(known.ok_ms),
        failed_at=_seconds(known.failed_ms),
        error=known.error,
    )


def _seconds(at_ms: int | None) -> float | None:
    return None if at_ms is None else at_ms / 1000
