"""What is said on `guard.sock`: one JSON object a line, each way.

A program says `hello` (who is the daemon? and: this is my session, and what it has), `admit` (may this lease begin?)
and `leave` (its body is over). The guard answers the first two, and says `lost` and `stopping` by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from gpulockd.daemon.fence import Lease, Party
from gpulockd.ledger.verbs import BroughtLease

LONGEST_LINE = 64 * 1024

FARTHEST_TOKEN = 10**9
"""How far a token may be above all that were seen, and above the clock in ms, by which pools begin to count."""

_ID = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-")
_GREATEST_TOKEN = 1 << 53
_LONGEST_TEXT = 16 * 1024
_WANTS = re.compile(r"(exclusive|shared):[0-9]{1,3}:[0-9]{1,9}:[^\s]{1,4096}")


class LeaseWords(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A lease as its process names it. `of`: the lease that it has joined; `assertion`: a `BroughtLease` as JSON."""

    id: str
    token: int
    gpus: tuple[str, ...] = ()
    exclusive: bool = True
    of: str = ""
    assertion: dict[str, Any] = {}


class Hello(msgspec.Struct, kw_only=True, tag_field="verb", tag="hello"):
    """Who are you? With `session`: this is who I am, `held` is what I hold, `known` what else I have asked for.

    `as_of` is the highest token that the session knew of when it made these lists; `was` the process's sessions that
    have ended before this one.
    """

    session: str = ""
    held: list[LeaseWords] = []
    known: list[str] = []
    as_of: int = 0
    was: list[str] = []


class Admit(msgspec.Struct, kw_only=True, tag_field="verb", tag="admit"):
    """May this lease begin? The answer comes when it may."""

    session: str
    lease: LeaseWords


class Leave(msgspec.Struct, kw_only=True, tag_field="verb", tag="leave"):
    """The body of this lease is over, or never began. Not answered. `lost`: it has been told of its loss before."""

    lease: str
    token: int
    lost: bool = False


Said = Hello | Admit | Leave

_decode: Callable[[bytes], Said] = msgspec.json.Decoder(Said).decode
encode = msgspec.json.Encoder().encode


class Wrong(Exception):
    """A line that says nothing that can be understood; `answer` names the cure."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.answer = {"error": what, "hint": hint}


def read(line: bytes) -> Said:
    """Return what a line says.

    :raises Wrong: if it says nothing that this version knows
    """
    try:
        said = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as wrong:
        raise Wrong(
            f"not understood: {wrong}"[:300], 'this version knows {"verb": "hello"}, "admit" and "leave", one a line'
        ) from None
    if isinstance(said, Hello):
        ids, words = [said.session or "-", *said.known, *(held.id for held in said.held)], said.held
    elif isinstance(said, Admit):
        ids, words = [said.session, said.lease.id], [said.lease]
    else:
        ids, words = [said.lease], []
    for id in ids:
        if not (0 < len(id) <= 64 and _ID.issuperset(id)):
            raise Wrong("an id is 1 to 64 letters, digits, '_' or '-'", "say the ids of the ledger's own answer")
    for lease in words:
        fits = 0 < lease.token < _GREATEST_TOKEN and (lease.of or 1 <= len(lease.gpus) <= 64)
        if not fits or any(not gpu or len(gpu) > 200 for gpu in lease.gpus):
            raise Wrong("token or gpus are none", "say the token and the gpus of the ledger's own answer")
    return said


def sound_assertion(words: LeaseWords) -> dict[str, Any]:
    """Return what the ledger would be told of this lease; empty if it says nothing that a ledger could take."""
    try:
        brought = msgspec.convert(words.assertion, BroughtLease)
        wants = _WANTS.fullmatch(brought.wants)
    except msgspec.ValidationError:
        return {}
    numbers = (brought.stamp, brought.age_ms, brought.lock_timeout_ms)
    small = all(0 <= number < _GREATEST_TOKEN for number in numbers) and -100 <= brought.priority <= 100
    short = max(len(brought.job), len(brought.task), len(brought.task_id)) <= _LONGEST_TEXT
    same = (brought.id, brought.token, tuple(brought.gpus)) == (words.id, words.token, tuple(words.gpus))
    return words.assertion if wants is not None and small and short and same else {}


def lease_of(words: LeaseWords, party: Party, *, spares_older: bool = False) -> Lease:
    """Return the lease that `words` name, held by `party`."""
    return Lease(
        id=words.id,
        token=words.token,
        gpus=tuple(words.gpus),
        exclusive=words.exclusive,
        parties=[party],
        assertion=sound_assertion(words),
        spares_older=spares_older,
    )
