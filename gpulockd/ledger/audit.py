"""The audit of the fleet: who did what, written once, never changed."""

from __future__ import annotations

import msgspec

from gpulockd.ledger.fleet import Ask, Reply, call, line, pairs

MOST_LINES = 1000
"""How many lines one page may have."""


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One deed. `at_ms` is the store's wall clock; `id` is its place in the audit; `revision` is what it was about."""

    at_ms: int
    author: str
    origin: str
    what: str
    text: str
    revision: int | None = None
    id: str = ""


async def audit(
    ask: Ask, *, text: str, author: str, origin: str, revision: int | None = None, what: str = "noted"
) -> None:
    """Write a line about something that changed no revision.

    :raises StoreUnavailable: if no answer came; the line may have been written
    """
    number = "" if revision is None else str(revision)
    note = line(author=author, origin=origin, what=what, text=text)
    await ask(call("audit", note, number, read=lambda _: None))


async def audits(ask: Ask, *, count: int = 100, before: str = "", down_to: str = "") -> list[AuditLine]:
    """A page of the audit, latest first.

    :param count: 1 to 1000
    :param before: the id of a line; "" for the latest
    :param down_to: the id of the line with which it ends, if that is there
    :raises StoreUnavailable: if no answer came
    """
    found: list[AuditLine] = await ask(call("audits", before, str(count), down_to, read=_lines))
    return found


def _lines(reply: Reply) -> list[AuditLine]:
    return [msgspec.structs.replace(msgspec.json.decode(json, type=AuditLine), id=id) for id, json in pairs(reply[2])]
