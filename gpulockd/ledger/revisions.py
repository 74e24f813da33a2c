"""The fleet's configuration in the store: numbered revisions, one of them in force, one the last stable one.

A revision is written once and never changed; how it turned out is its mark. Whoever changes the configuration says from
which revision, and is told if another change came first. Every change is written to the audit in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import msgspec

from gpulockd.errors import GpuLockError
from gpulockd.ledger.audit import AuditLine, audit, audits
from gpulockd.ledger.fleet import Ask, Reply, call, encode, line, pairs, unknown, words
from gpulockd.ledger.keys import FLEET_CHANNEL, FleetKeys
from gpulockd.ledger.restoring import restore
from gpulockd.ledger.revision import (
    MOST_REVISIONS,
    Change,
    Conflict,
    Origin,
    Revision,
    State,
    Tree,
    UnknownRevision,
    revision_of,
)
from gpulockd.ledger.rollout import RolloutConflict, RolloutRow, drive, read_rollout, write_rollout
from gpulockd.ledger.validation import digest, note_validated, validated

__all__ = [
    "FLEET_CHANNEL",
    "MOST_REVISIONS",
    "Ask",
    "AuditLine",
    "Change",
    "Conflict",
    "Origin",
    "Revision",
    "RolloutConflict",
    "RolloutRow",
    "State",
    "Tree",
    "UnknownRevision",
    "audit",
    "audits",
    "bases",
    "digest",
    "drive",
    "first",
    "history",
    "mark",
    "note_validated",
    "read",
    "read_rollout",
    "restore",
    "revise",
    "set_base",
    "validated",
    "write_rollout",
]


async def read(ask: Ask) -> State:
    """The revision in force.

    :raises StoreUnavailable: if no answer came
    """
    found: State = await ask(call("state", read=_state))
    return found


async def revise(
    ask: Ask,
    *,
    expected: int | None,
    author: str,
    reason: str,
    origin: str,
    live: Tree,
    diff: Sequence[Change] = (),
    pool: str = "",
    validated: str = "",
    of: int | None = None,
    id: str | None = None,
    said: str = "",
    base: Tree | None = None,
) -> Revision | Conflict:
    """Make `live` the document in force, as the next revision.

    :param expected: the revision from which the change was made; None: there was none
    :param id: of this change: asking again with the same one, after a lost answer, makes no second revision
    :param said: what it changes, in words for the audit
    :param base: what file and environment of `pool` say from this revision on
    :raises StoreUnavailable: if no answer came; the revision may have been made
    """
    id = id or uuid4().hex
    body = {
        "id": id,
        "author": author,
        "reason": reason,
        "origin": origin,
        "pool": pool,
        "diff": [msgspec.to_builtins(change) for change in diff],
        "validated": validated,
        "of": of,
    }
    what = "began" if expected is None else "rolled back" if of is not None else "revised"
    note = line(author=author, origin=origin, what=what, text=": ".join(part for part in (reason, said) if part))
    known = "" if expected is None else str(expected)
    words = (known, id, encode(live), encode(body), note, "" if base is None else encode(base))
    keys = FleetKeys() if base is None else FleetKeys(pool)
    made: Revision | Conflict = await ask(call("revise", *words, read=_revised, keys=keys))
    return made


async def first(
    ask: Ask, *, author: str, reason: str = "first start", live: Tree | None = None, origin: str = "first"
) -> Revision:
    """Make revision 0, which is stable, if there is none; return the one in force.

    :raises StoreUnavailable: if no answer came
    """
    made = await revise(ask, expected=None, author=author, reason=reason, origin=origin, live=live or {})
    if isinstance(made, Revision):
        return made
    if made.current is None:
        raise GpuLockError("the store has the number of a revision, but not the revision: restore a backup")
    return made.current


async def mark(
    ask: Ask,
    number: int,
    *,
    stable: bool | None = None,
    outcome: str | None = None,
    author: str = "",
    origin: str = "daemon",
) -> Revision:
    """Say how a revision has turned out; None leaves it as it is.

    :raises UnknownRevision: if it is not kept
    :raises StoreUnavailable: if no answer came
    """
    said = [outcome or ""] if outcome is not None else []
    if stable is not None:
        said.insert(0, "stable" if stable else "not stable")
    note = line(author=author, origin=origin, what="marked", text=": ".join(part for part in said if part))
    flag = "" if stable is None else "1" if stable else "0"
    text = "" if outcome is None else encode(outcome)
    marked: Revision | None = await ask(call("mark", str(number), flag, text, note, read=_marked))
    if marked is None:
        raise UnknownRevision(f"there is no revision {number}; the last {MOST_REVISIONS} are kept", number=number)
    return marked


async def history(ask: Ask, *, before: int | None = None, count: int = 50) -> list[Revision]:
    """A page of revisions, latest first.

    :param before: the page begins below this number; None: with the latest
    :param count: 1 to 1000
    :raises StoreUnavailable: if no answer came
    """
    page = call("history", "" if before is None else str(before), str(count), read=_page)
    found: list[Revision] = await ask(page)
    return found


async def set_base(ask: Ask, pool: str, tree: Tree) -> int | None:
    """Write down what file and environment of a pool's daemon say from the current revision on.

    Returns its number, None if there is no revision yet.

    :raises StoreUnavailable: if no answer came
    """
    found: int | None = await ask(call("base", encode(tree), read=_based, keys=FleetKeys(pool)))
    return found


async def bases(ask: Ask, pool: str) -> dict[int, Tree]:
    """What file and environment of a pool's daemon said, each from its revision on.

    :raises StoreUnavailable: if no answer came
    """
    found: dict[int, Tree] = await ask(call("bases", read=_bases, keys=FleetKeys(pool)))
    return found


def _state(reply: Reply) -> State:
    _, wall_ms, json, marked, stable, live = words(reply)
    return State(
        current=revision_of(json, marked),
        stable=int(stable) if stable else None,
        live=msgspec.json.decode(live) if live else {},
        wall_ms=int(wall_ms),
    )


def _revised(reply: Reply) -> Revision | Conflict:
    word, _, json, marked = words(reply)
    revision = revision_of(json, marked)
    if word == "conflict":
        return Conflict(revision)
    if word != "revised" or revision is None:
        raise unknown(word)
    return revision


def _marked(reply: Reply) -> Revision | None:
    return revision_of(*words(reply)[2:4])


def _page(reply: Reply) -> list[Revision]:
    found = [revision_of(json, marked) for json, marked in pairs(reply[2])]
    return [revision for revision in found if revision is not None]


def _based(reply: Reply) -> int | None:
    number = words(reply)[2]
    return int(number) if number else None


def _bases(reply: Reply) -> dict[int, Tree]:
    return {int(number): msgspec.json.decode(tree) for number, tree in pairs(reply[2])}
