"""The alerts of the fleet in the store: what stands, what is still to be told, and what was. Lua writes it, here is the
only door.

| key (`gpulockd:{fleet}:`) | type | what |
|---|---|---|
| `alerts` | hash | "<pool>:<rule>" -> version, alert (JSON) |
| `alerts_outbox` | hash | "<pool that tells>\\|<channel>\\|<alert>" -> notice id, claim, its end (ms), notice (JSON) |
| `alerts_history` | stream | what was raised, escalated, resolved, acknowledged and silenced; the last 10,000 |
| `alerts_silences` | hash | "<pool>:<rule>" -> end (ms), silence (JSON) |
| `alerts_daemons` | hash | pool -> its daemon's session, and whether it has stopped (JSON) |
| `alerts_channels` | hash | "<pool>\\|<channel>" -> its last message (wall clock, ms), what is known of it (JSON) |

All values are opaque here. Times are the server's wall clock (ms).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import msgspec

from gpulockd.ledger import answers as a
from gpulockd.ledger import reading
from gpulockd.ledger.keys import FLEET_BASE, FleetKeys, PoolKeys
from gpulockd.ledger.lua_files import CHUNKS, ROOMS, Script, _joined
from gpulockd.ledger.verbs import Call

AT_ONCE = 32
"""How many alerts one call writes."""

_VERBS = ("write", "read", "claim", "sent", "mark")
_POOL_VERBS = ("event", "look")


class AlertKeys(FleetKeys):
    """The keys of one call, all in the fleet's slot, in the order in which its script takes them."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.wire = tuple(f"{FLEET_BASE}{name}".encode() for name in names)


_ALERTS, _OUTBOX, _HISTORY = "alerts", "alerts_outbox", "alerts_history"
_SILENCES, _DAEMONS, _CHANNELS = "alerts_silences", "alerts_daemons", "alerts_channels"


class Kept(msgspec.Struct, frozen=True):
    """A value with the number in front of it: a version, or a moment (ms); 0 where there is none."""

    number: int
    json: bytes


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one alert. `version` is the one that the caller knows, None if it knows none.

    `alert` is JSON, b"" removes it; `line` is what its history says (JSON), b"" nothing; `notice` is (id, JSON) of what
    is to be told over `channels`. ("*",) with an alert that is removed: nothing of it is to be told any more.
    """

    id: str
    version: int | None
    alert: bytes
    line: bytes = b""
    notice: tuple[str, bytes] | None = None
    channels: tuple[str, ...] = ()


class Written(msgspec.Struct, frozen=True):
    """The alerts that another has changed meanwhile, so that they were left."""

    left: tuple[str, ...]


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """All that stands. `untold`: how many notices "<pool>|<channel>" has still to tell; `cpu_s`: CPU time of the server
    since its start, None if it does not say."""

    wall_ms: int
    alerts: dict[str, Kept]
    silences: dict[str, Kept]
    daemons: dict[str, Kept]
    channels: dict[str, Kept]
    history: tuple[bytes, ...]
    untold: dict[str, int]
    cpu_s: float | None

    @property
    def outbox(self) -> int:
        """How many notices are still to be told, over all channels."""
        return sum(self.untold.values())


class Due(msgspec.Struct, frozen=True):
    """One notice to be told: its place in the outbox, its id, and itself (JSON)."""

    field: str
    id: str
    json: bytes


class Claimed(msgspec.Struct, frozen=True):
    """The notices that the caller alone may tell now."""

    due: tuple[Due, ...]


class Later(msgspec.Struct, frozen=True):
    """Nothing may be told now; in `wait_s` (in seconds) something may. None: there is nothing."""

    wait_s: float | None


class Noted(msgspec.Struct, frozen=True):
    """It is noted, at that moment (wall clock, ms)."""

    wall_ms: int


class Looked(a.Answer, frozen=True, kw_only=True):
    """Whether the session lives."""

    alive: bool


class Told(a.Answer, frozen=True, kw_only=True):
    """It stands in the pool's stream; `before`: it did already."""

    before: bool


def alert_write(*, by: str, changes: Sequence[Change]) -> Call[Written]:
    """Write what becomes of at most 32 alerts, with what is to be told of them.

    :param by: the pool whose daemon writes, and then tells over its channels
    """
    args: list[Any] = [by]
    for one in changes:
        notice_id, notice = one.notice or ("", b"")
        version = "" if one.version is None else str(one.version)
        args += [one.id, version, one.alert, one.line, notice_id, notice, ",".join(one.channels)]
    keys = AlertKeys(_ALERTS, _OUTBOX, _HISTORY)
    return Call(_script("write"), keys, tuple(args), lambda reply: Written(tuple(map(reading.text, reply[1]))))


def alert_read(*, history: int = 0) -> Call[Stored]:
    """Read all that stands, and the latest lines of the history (at most 1000)."""
    keys = AlertKeys(_ALERTS, _SILENCES, _DAEMONS, _CHANNELS, _HISTORY, _OUTBOX)
    return Call(_script("read"), keys, (str(history),), _stored)


def alert_claim(
    *, by: str, channel: str, claim: str, claim_ms: int, apart_ms: int, most: int, gone: Sequence[str] = ()
) -> Call[Claimed | Later]:
    """Take what is to be told over a channel now.

    :param claim: the caller's process, in a word of its own; what it claims is its for `claim_ms`
    :param apart_ms: the least time between two messages of the channel
    :param gone: pools without a daemon, whose notices over a channel of that name are taken too
    """
    args = (by, channel, claim, str(claim_ms), str(apart_ms), str(most), ",".join(gone))
    return Call(_script("claim"), AlertKeys(_OUTBOX, _CHANNELS), args, _claimed)


def alert_sent(
    *,
    by: str,
    channel: str,
    claim: str,
    how: Literal["told", "failed", "dropped"],
    due: Sequence[Due],
    known: bytes,
    rest_ms: int = 0,
) -> Call[Noted]:
    """Say how telling went; without notices it was a test of the channel.

    :param known: what is known of the channel now (JSON)
    :param rest_ms: how long to leave what could not be told
    """
    pairs = [word for one in due for word in (one.field, one.id)]
    args = (by, channel, claim, how, str(rest_ms), known, *pairs)
    return Call(_script("sent"), AlertKeys(_OUTBOX, _CHANNELS), args, lambda reply: Noted(int(reply[1])))


def silence_mark(*, id: str, silence: bytes, for_ms: int) -> Call[int]:
    """Silence a rule; returns until when (wall clock, ms). An empty silence ends it."""
    args = (id, silence, str(for_ms))
    return Call(_script("mark"), AlertKeys(_SILENCES), args, lambda reply: int(reply[1] or 0))


def daemon_mark(*, pool: str, daemon: bytes) -> Call[int]:
    """Say how the daemon of a pool stands (JSON); nothing: there is none any more."""
    return Call(_script("mark"), AlertKeys(_DAEMONS), (pool, daemon, ""), lambda reply: int(reply[1] or 0))


def alert_event(
    keys: PoolKeys,
    *,
    kind: Literal["alert_raised", "alert_resolved"],
    notice: str,
    rule: str,
    level: str,
    message: str,
    detail: str,
) -> Call[Told | a.Unopened]:
    """Tell of an alert in the stream of its pool, once however often this is sent."""
    return Call(_pool_script("event"), keys, ("", kind, notice, rule, level, message, detail), _told)


def alert_look(keys: PoolKeys, *, session: str) -> Call[Looked | a.Unopened]:
    """Ask whether a session of a pool lives."""
    return Call(_pool_script("look"), keys, ("", session), _looked)


@cache
def _scripts() -> dict[str, Script]:
    verbs = {verb: f"alert_{verb}" for verb in _VERBS}
    return _joined("gpulockd_alerts_", "", ("_server", "_alerts"), verbs, "alerts", None)


@cache
def _pool_scripts() -> dict[str, Script]:
    """Two verbs of pools: a library of their own, so that programs, which never call them, do not load them."""
    verbs = {verb: f"alert_{verb}" for verb in _POOL_VERBS}
    return _joined("gpulockd_alerted_", f"local {', '.join(ROOMS)}", CHUNKS, verbs, "books", None)


def _script(verb: str) -> Script:
    return _scripts()[verb]


def _pool_script(verb: str) -> Script:
    return _pool_scripts()[verb]


def _kept(flat: list[bytes]) -> dict[str, Kept]:
    found = {}
    for i in range(0, len(flat), 2):
        number, _, json = flat[i + 1].partition(b" ")
        found[flat[i].decode("utf-8", "replace")] = Kept(int(number or 0), json)
    return found


def _stored(reply: list[Any]) -> Stored:
    return Stored(
        wall_ms=int(reply[1]),
        alerts=_kept(reply[2]),
        silences=_kept(reply[3]),
        daemons=_kept(reply[4]),
        channels=_kept(reply[5]),
        history=tuple(reply[6]),
        untold={reading.text(reply[7][i]): int(reply[7][i + 1]) for i in range(0, len(reply[7]), 2)},
        cpu_s=float(reply[8]) if reply[8] else None,
    )


def _claimed(reply: list[Any]) -> Claimed | Later:
    if reply[0] == b"nothing":
        return Later(None)
    if reply[0] == b"later":
        return Later(max(1, int(reply[1])) / 1000)
    flat = reply[1]
    return Claimed(
        tuple(Due(reading.text(flat[i]), reading.text(flat[i + 1]), flat[i + 2]) for i in range(0, len(flat), 3))
    )


def _told(reply: list[Any]) -> Told | a.Unopened:
    if reply[0] == b"unopened":
        return a.NO_BOOKS
    clock, now_ms = reading._terms(reply)
    return Told(clock=clock, now_ms=now_ms, before=reply[0] == b"noted")


def _looked(reply: list[Any]) -> Looked | a.Unopened:
    if reply[0] == b"unopened":
        return a.NO_BOOKS
    clock, now_ms = reading._terms(reply)
    return Looked(clock=clock, now_ms=now_ms, alive=reply[0] == b"alive")
