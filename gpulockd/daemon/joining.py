"""Joining: another process of a run comes into its lease. Descent is looked at now, environments by who has time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from gpulockd.daemon.admission import LeaseWords
from gpulockd.daemon.callers import Caller, Words
from gpulockd.daemon.fence import Fence, Lease, Party
from gpulockd.daemon.holders import follow
from gpulockd.daemon.naming import NOT_YOURS, Names
from gpulockd.daemon.sharing import may_have
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.processes.kin import descends
from gpulockd.model import TicketRecord

NO_KIN = "this process does not descend from the holder"
CROWD = "too many join leases at this moment; ask again later"

MOST_DOUBTS = 1024
MOST_PARTIES = 1024
"""Processes that have joined one lease and are in it; each change of a lease writes all of them."""


class Doubt(NamedTuple):
    """A process that wants to join a lease, and may have been started inside of it."""

    caller: Caller
    session: str
    words: LeaseWords


class Joining:
    """Who may come into whose lease."""

    def __init__(
        self, fence: Fence, runs: Runs, names: Names, joined: Callable[[Lease | None, Party | None], None]
    ) -> None:
        """:param joined: told of each that came in; with None when there is a new doubt"""
        self.doubts: list[Doubt] = []
        """Processes that do not descend from the holder: their environment must be read."""
        self._fence = fence
        self._runs = runs
        self._names = names
        self._joined = joined

    def ask(self, caller: Caller, session: str, words: LeaseWords) -> Words:
        """Let a process in that descends from the holder; of another one it must be found out."""
        lease = self._fence.leases.get(words.of)
        if lease is None or lease.lost or lease.token != words.token:
            return refused(words, "the lease that it joins is not in")
        if caller.process is None:
            return refused(words, "the kernel does not show this process")
        others = self._names.others(caller, session, words.id)
        if any(not other.is_fresh for other in others):
            return refused(words, NOT_YOURS)
        if others:
            return self._doubt(Doubt(caller, session, words))
        if caller.process in self._runs.members(lease.id) or any(
            descends(caller.process, Process(party.pid, party.started)) for party in lease.parties if party.pid
        ):
            return self._enter(lease, caller.party(words.id, session), words)
        return self._doubt(Doubt(caller, session, words))

    def _doubt(self, doubt: Doubt) -> Words:
        taken = Counter(other.caller.uid for other in self.doubts)
        if not may_have(doubt.caller.uid, taken, MOST_DOUBTS):
            return refused(doubt.words, CROWD)
        self.doubts.append(doubt)
        self._joined(None, None)
        return {"waits": doubt.words.id, "token": doubt.words.token, "for": []}

    def decide(self, doubt: Doubt, *, is_kin: bool) -> None:
        """Tell a process whether it may come in; while another has named its ticket, after the next comparison."""
        lease = self._fence.leases.get(doubt.words.of)
        others = self._names.others(doubt.caller, doubt.session, doubt.words.id)
        if others and all(other.is_fresh for other in others):
            self._doubt(doubt)
        elif others:
            doubt.caller.say(refused(doubt.words, NOT_YOURS))
        elif is_kin and lease is not None and not lease.lost:
            party = doubt.caller.party(doubt.words.id, doubt.session)
            doubt.caller.say(self._enter(lease, party, doubt.words))
        else:
            doubt.caller.say(refused(doubt.words, NO_KIN))

    def _enter(self, lease: Lease, party: Party, words: LeaseWords) -> Words:
        if len(lease.inside) >= MOST_PARTIES:
            return refused(words, CROWD)
        party.fresh = True
        self._fence.join(lease.id, party)
        self._joined(lease, party)
        return {"admitted": words.id, "token": words.token}

    def unheard(self) -> list[tuple[Lease, Party]]:
        """Those in leases that the ledger has, who have joined them on their own word."""
        leases = [lease for lease in self._fence.leases.values() if not lease.fresh]
        return [(lease, party) for lease in leases for party in lease.inside if party.fresh]

    def compare(self, unheard: Iterable[tuple[Lease, Party]], tickets: Iterable[TicketRecord]) -> None:
        """Keep whom the ledger knows as members; what another was granted or never joined is nobody's word for it.

        :param unheard: who was in before the ledger was asked
        :param tickets: all leases and members that the ledger has
        """
        members = {ticket.id: (ticket.session, ticket.of) for ticket in tickets}
        for lease, party in unheard:
            if self._fence.leases.get(lease.id) is not lease or party not in lease.inside:
                continue
            if members.get(party.ticket) == (party.session, lease.id):
                party.fresh = False
                follow(self._runs, lease, party)
            elif lease.inside != [party]:
                lease.parties.remove(party)
            self._joined(lease, None)


def refused(words: LeaseWords, why: str) -> Words:
    """The answer to a lease that may not begin."""
    return {"refused": words.id, "token": words.token, "why": why}


def told(lease: Lease) -> Words:
    """A lease that is in the way, as the one who waits is told of it."""
    return {"lease": lease.id, "token": lease.token, "pid": lease.holder.pid, "gpus": lease.gpus}
