"""Who speaks to the guard: one connection each, and whose sessions they are.

A session belongs to the process that named it first, as the kernel shows that process; nobody else may speak for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpulockd.daemon.admission import Hello
from gpulockd.daemon.fence import Fence, Lease, Party
from gpulockd.hardware.processes.identity import Process, alive
from gpulockd.hardware.processes.watch import Watch

Words = Mapping[str, Any]

MOST_SESSIONS = 64
"""Sessions that one connection may speak for; a process has one a pool, and a new one when the old has ended."""

MOST_OWNED = 1024
"""Sessions that one process may have named over all its connections: at its death each costs the ledger an end."""


class Caller:
    """One connection to the guard, or a request that the daemon makes for a process.

    :param process: who the kernel says it is; None where it does not show it, and the connection stands for it
    :param say: sends one line; must not block
    """

    def __init__(
        self,
        process: Process | None,
        uid: int,
        say: Callable[[Words], None],
        *,
        hint: str = "",
        spares_older: bool = False,
    ) -> None:
        """:param hint: why the kernel does not show the process, and the cure
        :param spares_older: the children that it has before a lease begins are no part of the lease's run
        """
        self.spares_older = spares_older
        self.hint = hint
        self.process = process
        self.uid = uid
        self.say = say
        self.sessions: set[str] = set()

    def __repr__(self) -> str:
        return f"<Caller {self.process or 'invisible'}>"

    @property
    def owner(self) -> Owner:
        """Whose word this is: the process's over all its connections, or this connection's."""
        return self.process or self

    def party(self, ticket: str, session: str) -> Party:
        """This caller in a lease."""
        pid, started = (self.process.pid, self.process.started_ticks) if self.process else (0, 0)
        return Party(ticket=ticket, session=session, pid=pid, started=started, uid=self.uid)

    def is_party(self, party: Party) -> bool:
        """Whether `party` is this caller's process."""
        if self.process is None:
            return party.pid == 0 and party.session in self.sessions
        return (party.pid, party.started) == (self.process.pid, self.process.started_ticks)


Owner = Process | Caller


class Callers:
    """All connections, by the sessions that they speak for."""

    def __init__(self, watch: Watch) -> None:
        """:param watch: is told of every process that speaks here"""
        self._watch = watch
        self._owners: dict[str, Owner] = {}
        self._callers: dict[str, list[Caller]] = {}

    def bind(self, caller: Caller, session: str) -> bool:
        """Take a session for this caller's process; False if it is another's."""
        if session not in self._owners and not self._has_room(caller):
            return False
        owner = self._owners.setdefault(session, caller.owner)
        if owner != caller.owner and not (isinstance(owner, Process) and not alive(owner)):
            return False
        self._owners[session] = caller.owner
        if session not in caller.sessions:
            caller.sessions.add(session)
            self._callers.setdefault(session, []).append(caller)
        if caller.process is not None and caller.process not in self._watch:
            self._watch.add(caller.process)
        return True

    def _has_room(self, caller: Caller) -> bool:
        owned = sum(owner == caller.owner for owner in self._owners.values())
        return len(caller.sessions) < MOST_SESSIONS and owned < MOST_OWNED

    def own(self, party: Party) -> None:
        """A process that was recorded: watch it, and keep its session for it. One that is dead is told at once."""
        if party.pid:
            process = Process(party.pid, party.started)
            self._owners.setdefault(party.session, process)
            self._watch.add(process)

    def part(self, caller: Caller) -> list[str]:
        """A connection has ended. Returns the sessions that end with it: their process is seen through it alone."""
        ended = []
        for session in caller.sessions:
            callers = self._callers.get(session, [])
            if caller in callers:
                callers.remove(caller)
            if caller.process is None and not callers:
                ended.append(session)
        return ended

    def of_process(self, process: Process) -> list[str]:
        """The sessions of a process."""
        return [session for session, owner in self._owners.items() if owner == process]

    def process(self, session: str) -> Process | None:
        """Whose session this is, as the kernel shows that process to the daemon; None if nobody such spoke for it."""
        owner = self._owners.get(session)
        return owner if isinstance(owner, Process) else None

    def processes(self) -> frozenset[Process]:
        """All processes that own a session."""
        return frozenset(owner for owner in self._owners.values() if isinstance(owner, Process))

    def tell_all(self, words: Words) -> None:
        """Say something to every connection that speaks for a session."""
        for caller in {id(caller): caller for callers in self._callers.values() for caller in callers}.values():
            caller.say(words)

    def forget(self, session: str) -> None:
        """A session has ended."""
        self._owners.pop(session, None)
        self._callers.pop(session, None)

    def hear(self, session: str) -> bool:
        """Whether anybody is connected for a session."""
        return bool(self._callers.get(session))

    def tell_lost(self, lease: Lease, session: str = "") -> None:
        """Tell those inside, or only one session of them, that their lease is over without them."""
        for party in lease.inside:
            if session in ("", party.session):
                words = {"lost": party.ticket, "token": lease.token, "reason": lease.lost or "unknown"}
                self.tell(party.session, words)

    def tell_again(self, caller: Caller, said: Hello, fence: Fence) -> None:
        """What a process has lost while it was not connected; if its body never began there, it says so."""
        sessions = [session for session in (said.session, *said.was) if self.bind(caller, session)]
        for lease in fence.leases.values():
            for session in sessions if lease.lost else ():
                self.tell_lost(lease, session)

    def tell(self, session: str, words: Words) -> None:
        """Say something to every connection of a session."""
        for caller in self._callers.get(session, ()):
            caller.say(words)
