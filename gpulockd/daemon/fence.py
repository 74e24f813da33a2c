"""The fence: who is on which gpu of this host, whatever the ledger says. Pure: no I/O, no clock.

Its law: a lease is let in only when every lease before it that it cannot share a gpu with is over. Over is said by the
holder (`leave`), by the ledger (released by its holder), or by the death of the whole run; never by time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec


class Party(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One process in a lease: its holder, or another of the same run that joined it.

    `pid` and `started` (kernel ticks) are 0 where the kernel does not show the process: its connection stands for it.
    """

    ticket: str
    session: str
    pid: int = 0
    started: int = 0
    uid: int = -1
    state: str = "in"
    """in | left | dead"""
    fresh: bool = False
    """It has joined on its own word: the ledger has not been seen to say so."""


class Lease(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A lease that is on its gpus, or wants to be let in.

    `assertion` is what the ledger must be told if it has lost its data (`BroughtLease` as JSON values); `began_ms` is
    when it was let in (CLOCK_BOOTTIME); `members` the processes that were found in its run (pid, start in ticks).
    """

    id: str
    token: int
    gpus: tuple[str, ...]
    exclusive: bool
    parties: list[Party] = []
    assertion: dict[str, Any] = {}
    began_ms: int = 0
    members: list[tuple[int, int]] = []
    lost: str = ""
    spares_older: bool = False
    """Only what is born after `began_ms` is of its run: what its holder had started before is not."""
    withdrawn: bool = False
    """Its body cannot have begun by its own rules, so it is only waited for: nobody is signalled."""
    fresh: bool = False
    """Let in on its process's word: the ledger has not been seen to have it. Its token and gpus may be made up."""

    @property
    def holder(self) -> Party:
        """The process that asked for the lease."""
        return self.parties[0]

    @property
    def inside(self) -> list[Party]:
        """Those that have neither left nor died."""
        return [party for party in self.parties if party.state == "in"]

    def is_grant_of(self, other: Lease) -> bool:
        """Whether both are one grant of one ticket to one session."""
        return (self.id, self.token, self.holder.session) == (other.id, other.token, other.holder.session)

    def in_the_way_of(self, other: Lease) -> bool:
        """Whether both cannot be on a gpu together."""
        return (self.exclusive or other.exclusive) and not set(self.gpus).isdisjoint(other.gpus)


class Admitted(NamedTuple):
    """It may begin."""


class Waits(NamedTuple):
    """It must wait until these leases are over."""

    blockers: tuple[Lease, ...]


class Refused(NamedTuple):
    """It may never begin: its turn is over."""

    why: str


Verdict = Admitted | Waits | Refused


MOST_OVER = 4096
"""Of so many leases that are over it is known that they were."""


class Fence:
    """The leases on this host's gpus, and the highest token that each gpu has seen.

    Who is in keeps others out, whoever says so. What stays when it is over, its token, stays only of what the ledger
    has granted.
    """

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}
        # gpu -> highest token of an exclusive lease, and of any lease, that the ledger has granted.
        self.marks: dict[str, tuple[int, int]] = {}
        self._over: dict[tuple[str, str], int] = {}  # ticket and session -> token of its latest lease that is over

    def __repr__(self) -> str:
        return f"<Fence {len(self.leases)} leases on {len(self.marks)} gpus>"

    @property
    def token(self) -> int:
        """The highest token of all leases that were in, by the ledger's word."""
        return max((mark[1] for mark in self.marks.values()), default=0)

    @property
    def fresh(self) -> list[Lease]:
        """The leases of which the ledger has not said yet that it has them."""
        return [lease for lease in self.leases.values() if lease.fresh]

    def ask(self, lease: Lease) -> Verdict:
        """Whether `lease` may begin now. Changes nothing."""
        known = self.leases.get(lease.id)
        if known is not None and known.token == lease.token:
            return Refused("it was lost") if known.lost else Admitted()
        # Its end is on the way to the ledger, which may give its gpus on at any moment.
        if self._over.get(_whose(lease)) == lease.token:
            return Refused("it was left")
        if known is not None and known.token > lease.token:
            return Refused(f"a later grant of this ticket (token {known.token}) is in")
        for gpu in lease.gpus:
            exclusive_mark, any_mark = self.marks.get(gpu, (0, 0))
            mark = any_mark if lease.exclusive else exclusive_mark
            if mark > lease.token:
                return Refused(f"{gpu} has been given to a later lease (token {mark})")
        blockers = tuple(other for other in self.leases.values() if other.in_the_way_of(lease) and other is not known)
        return Waits(blockers) if blockers else Admitted()

    def enter(self, lease: Lease) -> None:
        """Record that `lease` is on its gpus; `ask` has said that it may, or it has been there all the time."""
        self.leases[lease.id] = lease
        for gpu in () if lease.fresh else lease.gpus:
            exclusive_mark, any_mark = self.marks.get(gpu, (0, 0))
            self.marks[gpu] = (
                max(exclusive_mark, lease.token) if lease.exclusive else exclusive_mark,
                max(any_mark, lease.token),
            )

    def join(self, id: str, party: Party) -> bool:
        """Let another process of the run into the lease `id`. Returns whether that lease is in."""
        lease = self.leases.get(id)
        if lease is None or lease.lost:
            return False
        if all(known.ticket != party.ticket for known in lease.parties):
            lease.parties.append(party)
        return True

    def leave(self, id: str, ticket: str, state: str = "left") -> Lease | None:
        """A party of the lease `id` has left, or is dead. Returns that lease if nobody is inside any more."""
        lease = self.leases.get(id)
        for party in lease.parties if lease is not None else ():
            if party.ticket == ticket and party.state == "in":
                party.state = state
                return lease if lease is not None and not lease.inside else None
        return None

    def remove(self, id: str, *, never: bool = False) -> Lease | None:
        """The lease `id` is over, or was `never` granted. One that is over does not begin again."""
        lease = self.leases.pop(id, None)
        if lease is not None and not never:
            self._over.pop(_whose(lease), None)
            self._over[_whose(lease)] = lease.token
            if len(self._over) > MOST_OVER:
                del self._over[next(iter(self._over))]
        return lease

    def lease_of(self, ticket: str) -> Lease | None:
        """The lease that the ticket holds or has joined."""
        if ticket in self.leases:
            return self.leases[ticket]
        return next((x for x in self.leases.values() if any(party.ticket == ticket for party in x.parties)), None)

    def on(self, gpu: str) -> list[Lease]:
        """The leases on one gpu."""
        return [lease for lease in self.leases.values() if gpu in lease.gpus]

    def sessions_inside(self, heard: Callable[[str], bool]) -> set[str]:
        """The sessions of living processes in leases that stand, for the guard to vouch for.

        :param heard: whether anybody is connected for a session; where the kernel shows no process, that is its life
        """
        inside = [party for lease in self.leases.values() if not lease.lost for party in lease.inside]
        return {party.session for party in inside if party.pid or heard(party.session)}

    def of_session(self, session: str) -> list[tuple[Lease, Party]]:
        """What one session is in."""
        return [(lease, party) for lease in self.leases.values() for party in lease.inside if party.session == session]

    def of_process(self, pid: int, started: int) -> list[tuple[Lease, Party]]:
        """What one process is in."""
        return [
            (lease, party)
            for lease in self.leases.values()
            for party in lease.parties
            if (party.pid, party.started) == (pid, started) and party.state == "in"
        ]


def _whose(lease: Lease) -> tuple[str, str]:
    """A ticket as its own process names it; the same id in another's mouth is not it."""
    return lease.id, lease.parties[0].session if lease.parties else ""


def unlisted(fence: Fence, session: str, listed: Iterable[str], as_of: int) -> list[tuple[Lease, Party]]:
    """The parties of a session that have left without being heard: its hello does not list them any more.

    :param as_of: the highest token that the session knew of when it made its list; later leases are not judged by it
    """
    known = set(listed)
    inside = fence.of_session(session)
    return [(lease, party) for lease, party in inside if party.ticket not in known and lease.token <= as_of]
