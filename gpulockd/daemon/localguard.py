"""The guard as seen from inside the daemon: leases that the HTTP side asks for on behalf of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from gpulockd.client.guarded import GuardAway, NotAdmitted
from gpulockd.client.table import Entry
from gpulockd.daemon.admission import Admit, LeaseWords, Leave
from gpulockd.daemon.callers import Caller
from gpulockd.daemon.guarding import Guard
from gpulockd.hardware.processes.identity import Process


class LocalGuard:
    """What a line of the daemon's own needs of the guard (`client.admitting.Admits`), for one process.

    :param process: the process that will hold; None where the kernel shows none, and this object stands for it
    :param spares_older: the children that it has before the grant are no part of its runs
    :param is_alive: whether it lets in at all, whatever the ledger has heard of it: it may have been cut off
    """

    def __init__(
        self, guard: Guard, process: Process | None, uid: int, *, spares_older: bool = False, is_alive: bool = True
    ) -> None:
        self.is_alive = is_alive
        self._guard = guard
        self._caller = Caller(process, uid, self._hear, spares_older=spares_older)
        self._asked: dict[str, tuple[int, asyncio.Future[None]]] = {}
        self._named: dict[str, int] = {}
        self._entries: dict[str, Entry] = {}
        self.stays = False
        """Whether what is held goes on without this object: the next daemon takes it over."""

    def admit(self, entry: Entry, token: int, gpus: tuple[str, ...]) -> asyncio.Future[None]:
        """Ask to be let in. The future fails with `NotAdmitted`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked[entry.id] = token, future
        self._named[entry.id] = token
        self._entries[entry.id] = entry
        words = LeaseWords(
            id=entry.id,
            token=token,
            gpus=gpus,
            exclusive=entry.ask.wants.exclusive,
            of=entry.of if entry.state == "member" else "",
            assertion=msgspec.to_builtins(entry.assertion(token, gpus)),
        )
        answer = self._guard.admit(self._caller, Admit(session=entry.session, lease=words))
        if answer is not None:
            self._hear(answer)
        return future

    def is_asked(self, entry: Entry) -> bool:
        """Whether it owes an answer for this ticket."""
        return entry.id in self._asked

    def has_let_in(self, entry: Entry, token: int) -> bool:
        """Whether a yes to this grant still stands."""
        lease = self._guard.fence.lease_of(entry.id)
        return lease is not None and not lease.lost and self._named.get(entry.id) == token

    def leave(self, entry: Entry) -> None:
        """Say that the body is over, or will not begin."""
        token, (_, future) = self._named.pop(entry.id, entry.token), self._asked.pop(entry.id, (0, None))
        if future is not None:
            future.cancel()
        if token:
            self._guard.leave(self._caller, Leave(lease=entry.id, token=token, lost=entry.lost.is_set()))

    def vouches(self, entry: Entry) -> bool:
        """Whether the guard has let this lease in."""
        lease = self._guard.fence.lease_of(entry.id)
        return lease is not None and lease.token == entry.token and not lease.lost

    async def stands(self) -> bool:
        """Whether it lets in."""
        return self.is_alive

    def look(self) -> None:
        """Nothing to connect."""

    def close(self) -> None:
        """The request is over. A process that goes on with the lease says so itself."""
        if not self.stays:
            self._guard.gone(self._caller)

    def descriptors(self) -> list[int]:
        """None of its own."""
        return []

    def _hear(self, said: Mapping[str, Any]) -> None:
        if "lost" in said:
            return self._lose(str(said["lost"]), said["token"], said["reason"])
        id = str(said.get("admitted") or said.get("refused") or "")
        token, future = self._asked.get(id, (0, None))
        if future is None or future.done() or token != said.get("token"):
            return
        del self._asked[id]
        if "admitted" in said:
            future.set_result(None)
        else:
            future.set_exception(NotAdmitted(f"the guard does not let this lease in: {said.get('why')}"))
            future.exception()

    def _lose(self, id: str, token: int, reason: str) -> None:
        entry = self._entries.get(id)
        if entry is not None and entry.state in ("held", "member") and token == entry.token:
            entry.lose(reason)
        elif entry is not None and entry.state == "asking" and token == self._named.get(id):
            _, future = self._asked.get(id, (0, None))
            if future is not None and not future.done():
                future.set_exception(GuardAway("the guard says that this grant is over"))
                future.exception()
            # No body has begun. The guard is in the middle of saying this, so it hears the answer afterwards.
            asyncio.get_running_loop().call_soon(self.leave, entry)
            entry.kick()
