"""A revision of the fleet's configuration, and how it is read from the store and written to it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gpulockd.errors import GpuLockError
from gpulockd.ledger.fleet import encode

Tree = dict[str, Any]
Origin = Literal["first", "file", "environment", "api", "cli", "rollback", "auto_rollback", "rollout", "page"]

MOST_REVISIONS = 1000
"""How many revisions are kept; the stable one besides."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One setting that a revision changed; None: not set."""

    path: str
    before: Any = None
    after: Any = None


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One state of the fleet's configuration.

    `at_ms` and `stable_at_ms` are the store's wall clock; `pool` is the pool it is about, "" for all; `validated` is
    the digest under which it was tried, "" if it was not; `of` is the revision that a rollback went back to.
    """

    number: int
    at_ms: int
    live: Tree
    id: str = ""
    author: str = ""
    reason: str = ""
    origin: str = ""
    pool: str = ""
    diff: tuple[Change, ...] = ()
    validated: str = ""
    of: int | None = None
    stable: bool = False
    stable_at_ms: int = 0
    outcome: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force: `current` None before the first start; `stable`: number of the last stable revision."""

    current: Revision | None
    stable: int | None
    live: Tree
    wall_ms: int


class Conflict(msgspec.Struct, frozen=True):
    """Nothing was written: the revision in force is another one than the caller knew."""

    current: Revision | None


class UnknownRevision(GpuLockError):
    """There is no such revision: the last 1,000 are kept, look at `gpulockd config history`."""

    number: int = -1


_MARK = ("stable", "stable_at_ms", "outcome")


def written(revision: Revision) -> list[str]:
    """The words by which a revision is brought back: number, id, JSON, mark."""
    body = {name: value for name, value in msgspec.to_builtins(revision).items() if name not in _MARK}
    marked = f"{int(revision.stable)} {revision.stable_at_ms} {encode(revision.outcome)}"
    return [str(revision.number), revision.id, encode(body), marked]


def revision_of(json: str, marked: str) -> Revision | None:
    """The revision of these words of a reply, None if there is none."""
    if not json:
        return None
    revision = msgspec.json.decode(json, type=Revision)
    stable, _, rest = marked.partition(" ")
    since_ms, _, outcome = rest.partition(" ")
    return msgspec.structs.replace(
        revision,
        stable=stable == "1",
        stable_at_ms=int(since_ms or 0),
        outcome=msgspec.json.decode(outcome, type=str) if outcome else "",
    )
