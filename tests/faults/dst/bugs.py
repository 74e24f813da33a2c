"""Bugs to plant in the real client, each at one of its seams. Each must be found, or the simulation sees nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from gpulockd.client.belief import BeliefWatch
from gpulockd.client.doorbell import Doorbell
from gpulockd.client.keeper import Keeper
from gpulockd.client.line import Line
from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.client.waiting import Waiting
from gpulockd.clock import boottime_s
from gpulockd.ledger import answers as a
from gpulockd.ledger.wire.connection import Wire
from gpulockd.model import Gpu
from tests.faults.dst.threads import replaced

Instead = tuple[Any, str, Any]


def _belief_from_answer() -> list[Instead]:
    heard, believes = Session.heard, Session.believes

    def hear(session: Session, asked_at: float, answer: a.Answer) -> None:
        heard(session, boottime_s(), answer)

    return [(Session, "heard", hear), (Session, "believes", lambda session, asked_at: believes(session, boottime_s()))]


def _no_belief() -> list[Instead]:
    def nothing(*about: object) -> float:
        return 0.25

    return [(Keeper, "_doubt", nothing), (BeliefWatch, "_look", nothing), (Session, "stands", lambda *about: True)]


def _no_confirm() -> list[Instead]:
    asks = Waiting._confirm

    async def confirm(waiting: Waiting, token: int) -> bool:
        keys = waiting.entry.ask.wants.keys
        if not keys:
            return await asks(waiting, token)
        waiting.entry.hold(token, tuple(Gpu(key=key) for key in keys), 0.0)
        return True

    return [(Waiting, "_confirm", confirm)]


def _no_repair() -> list[Instead]:
    def unheard(*about: object) -> None:
        """A kick that nobody hears."""

    return [
        (Doorbell, "_repair", unheard),
        (Doorbell, "kick_all", unheard),
        (Session, "take_echo", lambda session, has: []),
        (Waiting, "_next_poll_s", lambda waiting: 1e6),
        (Entry, "kick_from_thread", unheard),
    ]


def _forgets_cancelled() -> list[Instead]:
    end_later = Line.end_later

    def later(line: Line, entry: Entry, reason: Any) -> Any:
        if reason == "abandoned":
            line.session.table.remove(entry)
            return None
        return end_later(line, entry, reason)

    return [(Line, "end_later", later), (Keeper, "_give_back", lambda keeper, id: None)]


def _crossed_replies() -> list[Instead]:
    take = Wire._take

    def cross(wire: Wire, reply: Any) -> None:
        while wire._line and wire._line[0][0].cancelled():
            wire._line.popleft()
        take(wire, reply)

    return [(Wire, "_take", cross)]


BUGS: dict[str, tuple[str, Callable[[], list[Instead]]]] = {
    "belief_from_answer": ("belief is counted from the answer, not from the question", _belief_from_answer),
    "no_belief": ("goes on for as long as nobody objects", _no_belief),
    "no_confirm": ("enters at the doorbell without asking whether its claim stands", _no_confirm),
    "no_repair": ("a lost doorbell is never made up for", _no_repair),
    "forgets_cancelled": ("a cancelled wait leaves its ticket behind", _forgets_cancelled),
    "crossed_replies": ("the reply to a cancelled command goes to the next one", _crossed_replies),
}
"""The planted bugs: what each does wrong, and what is put in the place of the client's own."""


@contextlib.contextmanager
def planted(bug: str) -> Iterator[None]:
    """Plant a bug for a while; "": none."""
    with contextlib.ExitStack() as stack:
        for where, name, instead in BUGS[bug][1]() if bug else ():
            stack.enter_context(replaced(where, name, instead))
        yield
