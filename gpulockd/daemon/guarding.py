"""The guard: lets leases in on this host's gpus, knows the processes in them, and hears of their deaths.

All of it is synchronous: a line comes in, a death is told, and what follows is decided and answered at once. What needs
the ledger (ending sessions of the dead, settling gpus) is taken up by the service `settling`, which `on_change` wakes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from gpulockd.clock import boottime_s
from gpulockd.daemon.admission import FARTHEST_TOKEN, Admit, Hello, LeaseWords, Leave, lease_of, sound_assertion
from gpulockd.daemon.anteroom import CROWDED, Anteroom
from gpulockd.daemon.callers import Caller, Callers, Words
from gpulockd.daemon.fence import MOST_OVER, Admitted, Fence, Lease, Party, Refused, Verdict, Waits, unlisted
from gpulockd.daemon.holders import follow
from gpulockd.daemon.joining import Joining, refused, told
from gpulockd.daemon.journal import Journal, RecordUnwritable
from gpulockd.daemon.kept import Kept
from gpulockd.daemon.naming import NOT_YOURS, Names
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.processes.watch import Watch

_log = structlog.get_logger(__name__)


class Guard:
    """The fence of this host's gpus, who is inside, and who waits before it."""

    on_change: Callable[[], None] | None = None
    on_leave: Callable[[], None] | None = None  # somebody leaves: the ledger is about to hand the gpu on
    kept: Kept | None = None
    doubtful = is_first = False
    """Whether the record of before could not be read whole, or is not there; and whether there never was one."""

    def __init__(self, fence: Fence, journal: Journal, runs: Runs, watch: Watch) -> None:
        """:param watch: tells deaths to `died`; `runs` follows the processes of each lease"""
        self.fence = fence
        self.runs = runs
        self.dead_sessions: set[str] = set()
        self.names = Names(fence)
        self.unproven = self.names.unproven
        self.left: dict[tuple[str, str], tuple[int, float]] = {}
        """What its holder has left, by id and session, until the ledger knows: token, moment (CLOCK_BOOTTIME)."""
        self._journal = journal
        self._waiting = Anteroom()
        self._disputed = Anteroom()  # their bodies have begun, and somebody else has named their ids first
        self.joining = Joining(fence, runs, self.names, self._joined)
        self.callers = Callers(watch)

    def __repr__(self) -> str:
        return f"<Guard {len(self.fence.leases)} in, {len(self._waiting)} waiting>"

    @property
    def waiting(self) -> list[Lease]:
        """The leases that wait to be let in."""
        return self._waiting.leases

    def changed(self) -> None:
        """Wake the service that compares fence and ledger, and keep the pidfds of who is inside."""
        if self.kept is not None and self.kept.is_heard:
            self.kept.hold(self.processes_inside())
        if self.on_change is not None:
            self.on_change()

    def hello(self, caller: Caller, said: Hello) -> Words:
        """Take a session's word for what it has; answer what of it is in."""
        if not said.session:
            return {}
        if not self.callers.bind(caller, said.session):
            return {"error": NOT_YOURS, "hint": "a process opens a session of its own"}
        listed = [*said.known, *(words.id for words in said.held)]
        for lease, party in unlisted(self.fence, said.session, listed, said.as_of):
            _log.info("guard.left_unheard", lease=party.ticket, message="a lease was left while nobody listened")
            self._leave(lease, party)
        asyncio.get_running_loop().call_soon(self.callers.tell_again, caller, said, self.fence)  # after the answer
        return {"admitted": [words.id for words in said.held if self._adopt(caller, said.session, words)]}

    def admit(self, caller: Caller, said: Admit) -> Words | None:
        """Let a lease in, or answer later (None) when those before it are over."""
        words = said.lease
        if not self.callers.bind(caller, said.session):
            return refused(words, NOT_YOURS)
        if words.of:
            return self.joining.ask(caller, said.session, words)
        lease = lease_of(words, caller.party(words.id, said.session), spares_older=caller.spares_older)
        verdict = self._verdict(lease, caller)
        if isinstance(verdict, Waits):
            return self._wait(lease, caller, verdict)
        if isinstance(verdict, Refused):
            return refused(words, verdict.why)
        known = self.fence.leases.get(lease.id)
        if known is None or known.token != lease.token:
            return self._enter(lease, caller)
        adopted = self._adopt(caller, said.session, words)
        return {"admitted": lease.id, "token": lease.token} if adopted else refused(words, NOT_YOURS)

    def _wait(self, lease: Lease, caller: Caller, verdict: Waits) -> Words:
        if not self._waiting.put(lease, caller):
            return CROWDED
        self.changed()
        return {"waits": lease.id, "token": lease.token, "for": [told(other) for other in verdict.blockers]}

    def _verdict(self, lease: Lease, caller: Caller) -> Verdict:
        """Whether a lease may begin that its process names, here or at its hello. Changes nothing."""
        if lease.token > max(self.fence.token, round(time.time() * 1000)) + FARTHEST_TOKEN:
            return Refused("no pool has given such a token")
        others = self.names.others(caller, lease.holder.session, lease.id)
        if any(not other.is_fresh for other in others):
            return Refused(NOT_YOURS)
        if others:
            return Waits(tuple(other.lease for other in others))  # the next comparison tells who lies
        if lease.id not in self.fence.leases and not self.names.has_room(caller.uid):
            return Waits(())
        return self.fence.ask(lease)

    def leave(self, caller: Caller, said: Leave) -> None:
        """The body of a lease of the caller's is over, or will not begin."""
        self._disputed.drop(said.lease, caller, said.token)
        if self._waiting.drop(said.lease, caller, said.token):
            return
        for lease in list(self.fence.leases.values()):
            for party in lease.inside if lease.token == said.token else ():
                if party.ticket == said.lease and caller.is_party(party):
                    if said.lost and lease.inside == [party]:  # a member's loss may be its own alone
                        lease.lost = lease.lost or "told"
                    self._leave(lease, party)

    def gone(self, caller: Caller) -> None:
        """A connection has ended. A process that the kernel shows lives on; one that it hides does not."""
        for room in (self._waiting, self._disputed):
            room.gone(caller)
        for session in self.callers.part(caller):
            self._end_session(session)

    def died(self, process: Process) -> None:
        """A process has ended: so have its sessions, and it is in no lease any more."""
        for session in self.callers.of_process(process):
            self._end_session(session)
        for lease, party in self.fence.of_process(process.pid, process.started_ticks):
            self._leave(lease, party, "dead")

    def adopt_ledgers(self, lease: Lease) -> None:
        """A lease that stood in the ledger before the guard came: nobody's word but the ledger's, never signalled."""
        known = self.fence.leases.get(lease.id)
        if known is not None and known.fresh and known.is_grant_of(lease):
            self.found(known, lease.gpus, exclusive=lease.exclusive)
        elif known is not None and known.fresh:
            self.throw_out(known)  # the ledger has just said whose it is
        if lease.id in self.fence.leases:
            return
        self.unproven.add(lease.id)
        self.fence.enter(lease)
        for party in lease.parties:
            self.callers.own(party)

    def found(self, lease: Lease, gpus: tuple[str, ...], *, exclusive: bool) -> None:
        """The ledger has this lease, on these gpus."""
        differs = set(gpus) != set(lease.gpus) or exclusive != lease.exclusive
        if differs:
            _log.warning("guard.lease_differs", lease=lease.id, message=f"{lease.gpus} was said, {gpus} is true")
        if differs or lease.fresh:
            lease.gpus, lease.exclusive, lease.fresh = gpus, exclusive, False
            self.fence.enter(lease)
            self.record(lease)

    def lost(self, lease: Lease, reason: str, *, withdrawn: bool = False) -> None:
        """The ledger has ended a lease without its holder, or never let it begin (`withdrawn`): tell those inside."""
        if lease.lost:
            return
        lease.lost, lease.withdrawn = reason, withdrawn
        self.record(lease)
        self.callers.tell_lost(lease)
        for party in lease.inside:
            if not party.pid and not self.callers.hear(party.session):
                party.state = "dead"  # no process that the kernel shows, and no connection: nobody to wait for

    def throw_out(self, lease: Lease) -> None:
        """Nobody was ever granted this lease: its token counts for nothing, and its process is not touched."""
        self.callers.tell_lost(lease)
        _log.warning("guard.thrown_out", lease=lease.id, pid=lease.holder.pid, message="a lease that was never granted")
        self._waiting.distrust(lease.holder.uid)
        self.over(lease, never=True)

    def over(self, lease: Lease, *, never: bool = False) -> None:
        """A lease is over, or was `never` granted: let in whom it kept out. A later grant of its ticket is another."""
        if self.fence.leases.get(lease.id) is not lease:
            return
        self.fence.remove(lease.id, never=never)
        self.unproven.discard(lease.id)
        self._journal.over(lease, never=never)
        self.runs.drop(lease.id)
        for other, caller in self._disputed.take(lease.id):
            if self._verdict(other, caller) == Admitted():
                self._enter(other, caller)
        self.let_in()
        self.changed()

    def let_in(self) -> None:
        """Look again at those that wait, the latest grant first: an earlier one's turn is over."""
        for lease, caller in self._waiting.in_turn():
            verdict = self._verdict(lease, caller)
            if isinstance(verdict, Waits):
                continue
            self._waiting.drop(lease.id, caller, lease.token)
            if isinstance(verdict, Refused):
                caller.say({"refused": lease.id, "token": lease.token, "why": verdict.why})
            else:
                caller.say(self._enter(lease, caller))

    def processes_inside(self) -> set[Process]:
        """The processes that are in a lease, dead ones that nobody has heard of yet too."""
        parties = (party for lease in self.fence.leases.values() for party in lease.inside)
        return {Process(party.pid, party.started) for party in parties if party.pid}

    def _adopt(self, caller: Caller, session: str, words: LeaseWords) -> bool:
        """A lease that its own process names at its hello: it is in, unless the fence knows better."""
        party = caller.party(words.id, session)
        if others := self.names.others(caller, session, words.id):
            if not words.of and all(other.is_fresh for other in others):
                self._disputed.put(lease_of(words, party), caller)
            return False
        known = self.fence.lease_of(words.id)
        if known is not None and known.token == words.token and not known.lost:
            if known.id in self.unproven and known.holder.session == session:
                known.parties, known.assertion = [party], sound_assertion(words)
                self.unproven.discard(known.id)
                follow(self.runs, known, party)
                self.record(known)
                self.changed()  # from now on its children are looked for
            return any(mine.ticket == words.id and caller.is_party(mine) for mine in known.inside)
        if words.of:
            answer = self.joining.ask(caller, session, words)
        else:
            lease = lease_of(words, party)
            answer = self._enter(lease, caller) if self._verdict(lease, caller) == Admitted() else {}
        return "admitted" in answer

    def _enter(self, lease: Lease, caller: Caller) -> Words:
        lease.began_ms, lease.fresh = lease.began_ms or round(boottime_s() * 1000), True
        try:
            self._journal.entered(lease)
        except RecordUnwritable as full:
            self._waiting.put(lease, caller)
            _log.error("guard.record_unwritable", message=full.message)
            return {"waits": lease.id, "token": lease.token, "for": [], "why": full.message}
        if lease.id in self.fence.leases:
            self.runs.drop(lease.id)  # an earlier grant of the same ticket, which never began
        self.fence.enter(lease)
        # The answer goes first: everybody waits for it, and the process is watched already.
        asyncio.get_running_loop().call_soon(self._entered, lease)
        return {"admitted": lease.id, "token": lease.token}

    def _leave(self, lease: Lease, party: Party, state: str = "left") -> None:
        emptied = self.fence.leave(lease.id, party.ticket, state)
        if state == "left":
            self.runs.let_go(lease.id, Process(party.pid, party.started))
        if emptied is not None and not emptied.lost and all(party.state == "left" for party in emptied.parties):
            self.left[emptied.id, emptied.holder.session] = emptied.token, boottime_s()
            if len(self.left) > MOST_OVER:
                del self.left[next(iter(self.left))]
            self.over(emptied)
        else:
            self.record(lease)
            self.changed()

    def _end_session(self, session: str) -> None:
        self.callers.forget(session)
        self.dead_sessions.add(session)
        for lease, party in self.fence.of_session(session):
            self._leave(lease, party, "dead")
        self.changed()

    def _entered(self, lease: Lease) -> None:
        """What follows from an entry."""
        if self.fence.leases.get(lease.id) is lease:
            follow(self.runs, lease, lease.holder)
        self.changed()

    def _joined(self, lease: Lease | None, party: Party | None) -> None:
        """Another process is in a lease, or those in it have changed; None: one may be, which must be found out."""
        if lease is not None:
            self.record(lease)
        if lease is not None and party is not None:
            follow(self.runs, lease, party)
        self.changed()

    def record(self, lease: Lease) -> None:
        """Write a lease that has changed; a disk that is full is said, and costs only a later daemon's knowledge."""
        try:
            self._journal.entered(lease)
        except RecordUnwritable as full:
            _log.error("guard.record_unwritable", message=full.message)
