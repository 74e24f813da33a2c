"""The doorbell of a session in one loop: what its messages do, in the moment in which they are read.

The winner's confirm is sent before the winner has woken: its task wakes while the server answers. The task alone
decides what the answer means, and whoever gives up forgets it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

from gpulockd.client.guarded import Admits
from gpulockd.client.keeper import Keeper
from gpulockd.client.session import Session
from gpulockd.client.table import Entry
from gpulockd.clock import boottime_s
from gpulockd.ledger import answers as a
from gpulockd.ledger import publishing, verbs
from gpulockd.ledger.store import Store
from gpulockd.ledger.verbs import Call

log = logging.getLogger("gpulockd")

ConfirmAnswer = a.Granted | a.Lapsed | a.Gone | a.Frozen | a.NoSession | a.Unopened


class Begun(NamedTuple):
    """A confirm that is under way since `asked_at` (seconds on CLOCK_BOOTTIME, before it was sent)."""

    token: int
    asked_at: float
    reply: asyncio.Future[Any]


class Doorbell:
    """Hears for the entries of one loop."""

    def __init__(self, session: Session, keeper: Keeper, loop: asyncio.AbstractEventLoop, store: Store) -> None:
        self._session = session
        self._keeper = keeper
        self._said_foreign = False
        self._loop = loop
        self._store = store
        self._begun: dict[str, Begun] = {}
        self.guard: Admits | None = None
        self.heard_at = 0.0
        """When the last message came (seconds of the loop's clock)."""

    def take(self, message: bytes) -> None:
        """Do what a message says. Never raises: others may write to the channel too."""
        self.heard_at = self._loop.time()
        try:
            self._obey(message.decode())
        except (ValueError, TypeError):
            if not self._said_foreign:
                log.warning("gpulockd: somebody else writes to the session's channel; passed over")
            self._said_foreign = True

    def _obey(self, message: str) -> None:
        word, _, rest = message.partition(" ")
        id, _, more = rest.partition(" ")
        if word == "echo":
            for part in rest.split(" ")[1:]:
                if part:
                    self._repair(*part.split(":"))
            return
        if word == "defaults":
            self._session.take_published(*publishing.heard(rest))
            return
        entry = self._mine(id)
        if entry is None:
            return
        if word == "claim":
            token, _, keys = more.partition(" ")
            self._ring(entry, int(token), tuple(keys.partition(" ")[0].split(",")))
        elif word in ("lost", "stop"):
            entry.rung_to_stop |= word == "stop"
            self._keeper.wake()  # its answer says whether that is true: anybody may have written it

    def _ring(self, entry: Entry, token: int, gpus: tuple[str, ...]) -> None:
        """Wake the winner, with its confirm under way, and the question to the guard of this host.

        One at a time for a ticket: what rings meanwhile the winner asks for itself, one token after the other. A ring
        that was heard late, or that anybody wrote, takes no guard's answer from the grant that waits for it.
        """
        if entry.state == "asking" and not self._asks_for(entry):
            asked_at = boottime_s()
            reply = self._store.begin(confirm_call(self._session, entry, token))
            if reply is not None:
                self.forget(entry)
                self._begun[entry.id] = Begun(token, asked_at, reply)
            if self._session.guarded and self.guard is not None and not self.guard.is_asked(entry):
                self.guard.admit(entry, token, gpus)
        entry.ring(token)

    def _asks_for(self, entry: Entry) -> bool:
        begun = self._begun.get(entry.id)
        return begun is not None and not begun.reply.done()

    def begun(self, entry: Entry, token: int) -> Begun | None:
        """The confirm of that token that is under way, for the one who waits for its answer."""
        begun = self._begun.pop(entry.id, None)
        if begun is not None and begun.token != token:
            begun.reply.cancel()
            return None
        return begun

    def forget(self, entry: Entry) -> None:
        """Nobody needs the answer any more."""
        begun = self._begun.pop(entry.id, None)
        if begun is not None:
            begun.reply.cancel()

    def _repair(self, id: str, token: str, state: str) -> None:
        """An echo names a claim whose doorbell was lost, a ticket that is away, a lease whose grant was not heard."""
        entry = self._mine(id)
        if entry is None or entry.state != "asking":
            return
        if state == "claim":
            entry.ring(int(token))
        else:
            entry.kick()

    def kick_all(self) -> None:
        """Let all who wait in this loop look for themselves."""
        for entry in self._session.table.all():
            if entry.loop is self._loop and entry.state == "asking":
                entry.kick()

    def _mine(self, id: str) -> Entry | None:
        entry = self._session.table.get(id)
        return entry if entry is not None and entry.loop is self._loop else None


def confirm_call(session: Session, entry: Entry, token: int) -> Call[ConfirmAnswer]:
    """The call that asks whether a claim stands."""
    return verbs.confirm(session.keys, session=entry.session, id=entry.id, token=token)
