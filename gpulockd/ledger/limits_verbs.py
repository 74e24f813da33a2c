"""The verb by which the daemon marks how far a lease has come, in age or in silence."""

from __future__ import annotations

from typing import Any, Literal

from gpulockd.ledger import answers as a
from gpulockd.ledger import reading
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.lua_files import script
from gpulockd.ledger.verbs import Call

Reached = Literal["warning", "soft", "hard", "silent", "operator"]


class Marked(a.Answer, frozen=True, kw_only=True):
    """The lease stands. "reached": marked and told now; "noted": before; "early": not there yet. `was`: its level."""

    how: Literal["reached", "noted", "early"]
    was: str


def reach(
    keys: PoolKeys,
    *,
    id: str,
    token: int,
    level: Reached,
    after_ms: int,
    stop: bool = False,
    manual: bool = False,
    session: str = "",
) -> Call[Marked | a.Gone | a.Stale | a.NoSession | a.Unopened]:
    """Mark a lease as having reached a level, once; it is not ended.

    :param level: an age, "silent" for a task that nothing is heard of, or "operator": somebody wants it to stop,
        whatever its age
    :param after_ms: the age or silence that counts: nothing is marked before, whatever the caller has seen
    :param stop: ask the holder to stop; it is rung at each call, since a ring may be lost
    :param manual: only the task's own words are signs of life, not its process's keepalives
    """
    args = (session, id, str(token), level, str(after_ms), "stop" if stop else "", "manual" if manual else "")
    return Call(script("reach"), keys, args, _marked)


def _marked(reply: list[Any]) -> Any:
    if reply[0] not in (b"reached", b"noted", b"early"):
        return reading.progressed(reply)
    clock, now_ms = reading._terms(reply)
    return Marked(clock=clock, now_ms=now_ms, how=reply[0].decode(), was=reading.text(reply[6]))
