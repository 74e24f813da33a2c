"""Joining: another process of a run comes into its lease. Descent is looked at now, environments by who has time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpulockd.daemon.admission import LeaseWords
from gpulockd.daemon.callers import Caller, Words
from gpulockd.daemon.fence import Fence, Lease, Party
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.processes.kin import descends

NO_KIN = "this process does not descend from the holder"


class Doubt(NamedTuple):
    """A process that wants to join a lease, and may have been started inside of it."""

    caller: Caller
    session: str
    words: LeaseWords


class Joining:
    """Who may come into whose lease."""

    def __init__(self, fence: Fence, runs: Runs, joined: Callable[[Lease | None, Party | None], None]) -> None:
        """:param joined: told of each that came in; with None when there is a new doubt"""
        self.doubts: list[Doubt] = []
        """Processes that do not descend from the holder: their environment must be read."""
        self._fence = fence
        self._runs = runs
        self._joined = joined

    def ask(self, caller: Caller, session: str, words: LeaseWords) -> Words:
        """Let a process in that descends from the holder; of another one it must be found out."""
        lease = self._fence.leases.get(words.of)
        if lease is None or lease.lost or lease.token != words.token:
            return refused(words, "the lease that it joins is not in")
        if caller.process is None:
            return refused(words, "the kernel does not show this process")
        if caller.process in self._runs.members(lease.id) or any(
            descends(caller.process, Process(party.pid, party.started)) for party in lease.parties if party.pid
        ):
            return self._enter(lease, caller.party(words.id, session), words)
        self.doubts.append(Doubt(caller, session, words))
        self._joined(None, None)
        return {"waits": words.id, "token": words.token, "for": []}

    def decide(self, doubt: Doubt, *, is_kin: bool) -> None:
        """Tell a process whether it may come in."""
        lease = self._fence.leases.get(doubt.words.of)
        if is_kin and lease is not None and not lease.lost:
            party = doubt.caller.party(doubt.words.id, doubt.session)
            doubt.caller.say(self._enter(lease, party, doubt.words))
        else:
            doubt.caller.say(refused(doubt.words, NO_KIN))

    def _enter(self, lease: Lease, party: Party, words: LeaseWords) -> Words:
        self._fence.join(lease.id, party)
        self._joined(lease, party)
        return {"admitted": words.id, "token": words.token}


def refused(words: LeaseWords, why: str) -> Words:
    """The answer to a lease that may not begin."""
    return {"refused": words.id, "token": words.token, "why": why}


def told(lease: Lease) -> Words:
    """A lease that is in the way, as the one who waits is told of it."""
    return {"lease": lease.id, "token": lease.token, "pid": lease.holder.pid, "gpus": lease.gpus}
