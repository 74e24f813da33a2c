"""What people are told: single notices, and one message for all that came together. Pure text and JSON.

Its law: a message has a bounded length whatever it tells of, and no control character of a name ever gets into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from gpulockd.alerting.judging import Alert, Kind
from gpulockd.alerting.rules import Level
from gpulockd.units import clean

MOST_LINES = 20
"""How many groups of alerts a text names."""

MOST_LISTED = 100
"""How many notices stand in a JSON message."""

MOST_POOLS = 8
LONGEST_LINE = 500

_RANK: dict[Level, int] = {"critical": 0, "warning": 1}
_SAID: dict[Kind, str] = {"raised": "", "escalated": "nobody has reacted: ", "resolved": "over: "}


class Notice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing to be told of one alert. `id` is the same however often it is sent; `escalated`: nobody had reacted."""

    id: str
    kind: Kind
    at_ms: int
    pool: str
    rule: str
    level: Level
    message: str
    detail: str = ""
    raised_ms: int | None = None
    times: int = 1
    escalated: bool = False
    test: bool = False


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """All that is told at once over one channel. `delivery` is the same for the same notices."""

    delivery: str
    level: Level
    subject: str
    text: str
    notices: tuple[Notice, ...]

    def payload(self) -> dict[str, object]:
        """Return the JSON of it, of at most 100 notices; `total` counts all."""
        return {
            "type": "gpulockd.alerts",
            "delivery": self.delivery,
            "level": self.level,
            "subject": self.subject,
            "text": self.text,
            "total": len(self.notices),
            "notices": [msgspec.to_builtins(notice) for notice in self.notices[:MOST_LISTED]],
        }


def notice_of(alert: Alert, kind: Kind, at_ms: int) -> Notice:
    """Return what is told of an alert that was just raised, escalated or resolved."""
    moment = alert.resolved_ms if kind == "resolved" else alert.escalated_ms if kind == "escalated" else alert.raised_ms
    words = f"{alert.id}\n{kind}\n{alert.times}\n{moment}\n{alert.raised_ms}"
    return Notice(
        id=hashlib.sha256(words.encode()).hexdigest()[:24],
        kind=kind,
        at_ms=at_ms,
        pool=alert.pool,
        rule=alert.rule,
        level=alert.severity,
        message=alert.message,
        detail=alert.detail,
        raised_ms=alert.raised_ms,
        times=alert.times,
        escalated=alert.escalated_ms is not None,
    )


def trial_notice(pool: str, at_ms: int) -> Notice:
    """Return what `gpulockd alerts test` sends."""
    words = f"test\n{pool}\n{at_ms}"
    return Notice(
        id=hashlib.sha256(words.encode()).hexdigest()[:24],
        kind="raised",
        at_ms=at_ms,
        pool=pool,
        rule="TEST",
        level="warning",
        message="a test of this channel; nothing is wrong",
        test=True,
    )


def message_of(notices: Sequence[Notice]) -> Message:
    """Return one message of all these: the worst first, equal ones of several pools in one line.

    :raises ValueError: if there are none
    """
    if not notices:
        raise ValueError("a message needs a notice")
    ordered = tuple(sorted(notices, key=_urgency))
    groups: dict[tuple[str, str, str], list[Notice]] = {}
    for notice in ordered:
        groups.setdefault((notice.kind, notice.rule, notice.level), []).append(notice)
    lines = [_line(group) for group in list(groups.values())[:MOST_LINES]]
    left = sum(len(group) for group in list(groups.values())[MOST_LINES:])
    if left:
        lines.append(f"... and {left} more; 'gpulockd alerts' lists all that stand")
    standing = [notice.level for notice in ordered if notice.kind != "resolved"]
    ids = "\n".join(sorted(notice.id for notice in ordered))
    return Message(
        delivery=hashlib.sha256(ids.encode()).hexdigest()[:32],
        level="critical" if "critical" in standing else "warning",
        subject=_subject(ordered),
        text="\n".join(lines) + "\n",
        notices=ordered,
    )


def _urgency(notice: Notice) -> tuple[int, int, int, str, str]:
    return notice.kind == "resolved", _RANK[notice.level], notice.at_ms, notice.rule, notice.pool


def _subject(notices: Sequence[Notice]) -> str:
    first = notices[0]
    what = "resolved" if first.kind == "resolved" else first.level
    more = f" and {len(notices) - 1} more" if len(notices) > 1 else ""
    return clean(f"[gpulockd] {'test' if first.test else what}: {first.rule} in {first.pool}{more}", 200)


def _line(group: Sequence[Notice]) -> str:
    first = group[0]
    pools = list(dict.fromkeys(notice.pool for notice in group))
    named = ", ".join(pools[:MOST_POOLS]) + (f" and {len(pools) - MOST_POOLS} more" if len(pools) > MOST_POOLS else "")
    head = "RESOLVED" if first.kind == "resolved" else first.level.upper()
    line = f"{head} {first.rule}: {_SAID[first.kind]}{first.message} (pool {named})"
    if first.kind == "resolved" and first.raised_ms is not None:
        line += f", raised at {_clock(first.raised_ms)}"
    elif first.detail and len(group) == 1:
        line += f": {first.detail}"
    if len(group) == 1 and first.times > 1:
        line += f", raised {first.times} times"
    return clean(line, LONGEST_LINE)


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
