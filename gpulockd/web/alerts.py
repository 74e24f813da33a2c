"""The alerts: what stands and what was, and what people say of it (acknowledge, silence, test)."""

from __future__ import annotations

import difflib

import msgspec

from gpulockd.alerting.judging import Book, Silence, acknowledged
from gpulockd.alerting.records import book_of, line_of
from gpulockd.alerting.rules import rules_of
from gpulockd.ledger.alerts import Change, alert_read, alert_write, daemon_mark, silence_mark
from gpulockd.ledger.keys import PoolKeys
from gpulockd.units import parse_duration_s
from gpulockd.web.alert_views import (
    AlertsView,
    AlertView,
    ChannelView,
    KnownChannel,
    SilenceView,
    alert_view,
    alerts_view,
    channel_view,
    silence_view,
)
from gpulockd.web.auth import Caller, check_owner
from gpulockd.web.problems import ProblemError, refusal
from gpulockd.web.table import Query, Row, Visit

LONGEST_SILENCE_S = 30 * 86_400.0
MOST_LINES = 1000
TRIES = 5
LIST_HINT = "GET /api/v1/alerts lists them"


class Acknowledgement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody says who takes an alert on."""

    note: str = ""


class SilenceWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long nothing is to be told: seconds or "1h"; 0 ends a silence."""

    for_: float | str = msgspec.field(name="for")
    note: str = ""


class TestWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which channel to try; null: all."""

    channel: str | None = None


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """The pool whose daemon is expected no more."""

    pool: str


class Tested(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a test message."""

    channels: tuple[ChannelView, ...]


async def alerts(visit: Visit) -> AlertsView:
    """All that stands, and the latest of what was."""
    stored = await visit.backend.ask(alert_read(history=visit.number("history", 50, MOST_LINES)))
    service = visit.backend.alerts
    return alerts_view(visit.backend.pool, stored, None if service is None else service.channels())


async def acknowledge(visit: Visit) -> AlertView:
    """Take an alert on: it is not escalated any more.

    :raises ProblemError: 404 if there is no such alert, 409 if it is not active, 403 for who may not
    """
    check_owner(visit.caller, "")
    id = _id(visit)
    for _ in range(TRIES):
        stored = await visit.backend.ask(alert_read())
        book = book_of(stored)
        alert = book.alerts.get(id)
        if alert is None:
            raise _nothing(id, book)
        if alert.state != "active":
            raise refusal(409, "not_active", f"{id} is {alert.state}", "only what is active can be acknowledged")
        by = _who(visit.caller)
        taken = acknowledged(alert, by, visit.body.note, stored.wall_ms)
        if taken != alert:
            line = line_of(taken, "acknowledged", stored.wall_ms, by)
            json = msgspec.json.encode(taken)
            change = Change(id=id, version=stored.alerts[id].number, alert=json, line=line)
            written = await visit.backend.ask(alert_write(by=visit.backend.pool, changes=[change]))
            if written.left:
                continue  # somebody has changed it meanwhile
        return alert_view(taken, book, stored.wall_ms)
    raise refusal(503, "busy", f"{id} changes faster than it can be written", "ask again in a moment")


async def silence(visit: Visit) -> SilenceView:
    """Tell nothing of a rule for a while; what still stands afterwards is told then.

    :raises ProblemError: 404 if there is no such rule, 422 for a time that is none, 403 for who may not
    """
    check_owner(visit.caller, "")
    id, body = _id(visit, short=True), visit.body
    for_s = parse_duration_s(body.for_, "for")
    if for_s > LONGEST_SILENCE_S:
        raise refusal(422, "invalid", f"for={for_s:,.10g} s is too long", "a silence has 30 days at most")
    pool, _, rule = id.rpartition(":")
    pool = PoolKeys(pool).pool if pool not in ("", "*") else "*"
    stored = await visit.backend.ask(alert_read())
    known = {one.name for one in rules_of(visit.backend.current.settings.alerts)} | {"*"}
    known |= {alert.rule for alert in book_of(stored).alerts.values()}
    if rule not in known:
        near = difflib.get_close_matches(rule, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "name a rule of the configuration, or * for all"
        raise refusal(404, "not_found", f"there is no rule {rule[:64]!r}", hint)
    made = Silence(rule=rule, pool=pool, by=_who(visit.caller), note=body.note[:500])
    json = msgspec.json.encode(made) if for_s > 0 else b""
    until_ms = await visit.backend.ask(silence_mark(id=made.id, silence=json, for_ms=round(for_s * 1000)))
    if visit.backend.alerts is not None:
        visit.backend.alerts.reconsider()
    return silence_view(msgspec.structs.replace(made, until_ms=until_ms))


async def forget(visit: Visit) -> Forgotten:
    """The daemon of a pool is gone for good: nobody watches for it any more, and its alert is over at the next look.

    :raises ProblemError: 404 if no daemon of such a pool is known, 409 for this daemon's own, 403 for who may not
    """
    check_owner(visit.caller, "")
    pool = str(visit.request.path_params["pool"])[:200]
    if pool == visit.backend.pool:
        raise refusal(409, "own", f"{pool} is the pool of this daemon", "stop the daemon instead")
    stored = await visit.backend.ask(alert_read())
    if pool not in stored.daemons:
        raise refusal(404, "not_found", f"no daemon of a pool {pool[:64]!r} is known", LIST_HINT)
    await visit.backend.ask(daemon_mark(pool=pool, daemon=b""))
    if visit.backend.alerts is not None:
        visit.backend.alerts.reconsider()
    return Forgotten(pool=pool)


async def try_channels(visit: Visit) -> Tested:
    """Send a test message over one channel, or over all, and say what came of it.

    :raises ProblemError: 404 if there is no such channel, 403 for who may not
    """
    check_owner(visit.caller, "")
    service, name = visit.backend.alerts, visit.body.channel
    if service is None:
        raise refusal(503, "no_alerts", "this daemon tells of no alerts", "its log says why")
    try:
        tried = await service.test_channel(name)
    except KeyError:
        raise refusal(404, "not_found", f"there is no channel {name[:64]!r}", "config.yml names them") from None
    found = {one: msgspec.convert(known, KnownChannel, from_attributes=True) for one, known in tried.items()}
    return Tested(channels=tuple(channel_view(f"{visit.backend.pool}|{one}", known) for one, known in found.items()))


def _id(visit: Visit, *, short: bool = False) -> str:
    """The id in the path; a rule alone is that of this pool, or of every pool where `short`."""
    id = str(visit.request.path_params["id"])[:200]
    return id if ":" in id or short else f"{visit.backend.pool}:{id}"


def _nothing(id: str, book: Book) -> ProblemError:
    near = difflib.get_close_matches(id, book.alerts, n=1)
    hint = f"did you mean {near[0]!r}?" if near else LIST_HINT
    return refusal(404, "not_found", f"there is no alert {id[:128]!r}", hint)


def _who(caller: Caller) -> str:
    return caller.user or "the API token"


ROWS: tuple[Row, ...] = (
    Row(
        method="GET",
        path="/api/v1/alerts",
        handler=alerts,
        answer=AlertsView,
        query=(Query("history", "lines of the history (50 if not said)", most=MOST_LINES),),
        summary="What needs a person, who has taken it on, and what was",
    ),
    Row(
        method="POST",
        path="/api/v1/alerts/test",
        handler=try_channels,
        request=TestWish,
        answer=Tested,
        access="operator",
        summary="Send a test message over the channels",
    ),
    Row(
        method="DELETE",
        path="/api/v1/alerts/daemons/{pool}",
        handler=forget,
        answer=Forgotten,
        access="operator",
        summary="Expect the daemon of a pool no more: its host is gone for good",
    ),
    Row(
        method="POST",
        path="/api/v1/alerts/{id:path}/ack",
        handler=acknowledge,
        request=Acknowledgement,
        answer=AlertView,
        access="operator",
        summary="Take an alert on, so that it is not escalated",
    ),
    Row(
        method="POST",
        path="/api/v1/alerts/{id:path}/silence",
        handler=silence,
        request=SilenceWish,
        answer=SilenceView,
        access="operator",
        summary="Tell nothing of a rule for a while",
    ),
)
