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
from gpulockd.daemon.fence import Admitted, Fence, Lease, Party, Refused, Waits, unlisted
from gpulockd.daemon.holders import follow
from gpulockd.daemon.joining import Joining, refused, told
from gpulockd.daemon.journal import Journal, RecordUnwritable
from gpulockd.daemon.kept import Kept
from gpulockd.hardware.processes.following import Runs
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.processes.watch import Watch

NOT_YOURS = "this session or lease belongs to another process"

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
        self.unproven: set[str] = set()
        """Leases that nobody of a known process has named: from the ledger, or not yet found there."""
        self.fresh: set[str] = set()
        """Leases let in that have not been found in the ledger yet."""
        self.left: dict[str, tuple[int, float]] = {}
        """Leases that their holders have left, with token and moment (CLOCK_BOOTTIME), until the ledger knows."""
        self._journal = journal
        self._waiting = Anteroom()
        self.joining = Joining(fence, runs, self._joined)
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
        for party in unlisted(self.fence, said.session, listed, said.as_of):
            _log.info("guard.left_unheard", lease=party.ticket, message="a lease was left while nobody listened")
            self._leave(party.ticket)
        asyncio.get_running_loop().call_soon(self.callers.tell_again, caller, said, self.fence)  # after the answer
        return {"admitted": [words.id for words in said.held if self._adopt(caller, said.session, words)]}

    def admit(self, caller: Caller, said: Admit) -> Words | None:
        """Let a lease in, or answer later (None) when those before it are over."""
        words = said.lease
        if not self.callers.bind(caller, said.session):
            return refused(words, NOT_YOURS)
        if words.of:
            return self.joining.ask(caller, said.session, words)
        if words.token > max(self.fence.token, round(time.time() * 1000)) + FARTHEST_TOKEN:
            return refused(words, "no pool has given such a token")
        if self._is_anothers(caller, said.session, words.id):
            return refused(words, NOT_YOURS)
        lease = lease_of(words, caller.party(words.id, said.session), spares_older=caller.spares_older)
        verdict = self.fence.ask(lease)
        if isinstance(verdict, Waits):
            return self._wait(lease, caller, verdict)
        if isinstance(verdict, Refused):
            return refused(words, verdict.why)
        known = self.fence.leases.get(lease.id)
        if known is None or known.token != lease.token:
            return self._enter(lease, caller)
        if self._adopt(caller, said.session, words):
            return {"admitted": lease.id, "token": lease.token}
        return refused(words, NOT_YOURS)

    def _wait(self, lease: Lease, caller: Caller, verdict: Waits) -> Words:
        if not self._waiting.put(lease, caller):
            return CROWDED
        self.changed()
        return {"waits": lease.id, "token": lease.token, "for": [told(other) for other in verdict.blockers]}

    def _is_anothers(self, caller: Caller, session: str, id: str) -> bool:
        """Whether a lease is known as another process's; what nobody has proven yet belongs to the ledger's session."""
        _, waiting = self._waiting.get(id) or (None, None)
        if waiting is not None and waiting is not caller and waiting.process != caller.process:
            return True
        known = self.fence.leases.get(id)
        if known is None or (id in self.unproven and known.holder.session == session):
            return False
        return known.holder.session != session or not caller.is_party(known.holder)

    def leave(self, caller: Caller, said: Leave) -> None:
        """The body of a lease of the caller's is over, or will not begin."""
        waiting = self._waiting.get(said.lease)
        if waiting is not None and waiting[0].token == said.token:
            if waiting[1].process == caller.process:
                self._waiting.drop(said.lease)
            return
        lease = self.fence.lease_of(said.lease)
        if lease is None or lease.token != said.token:
            return
        mine = next((party for party in lease.parties if party.ticket == said.lease), None)
        if mine is not None and caller.is_party(mine):
            if said.lost and lease.inside == [mine]:  # a member's loss may be its own alone
                lease.lost = lease.lost or "told"
            self._leave(said.lease)

    def gone(self, caller: Caller) -> None:
        """A connection has ended. A process that the kernel shows lives on; one that it hides does not."""
        self._waiting.gone(caller)
        for session in self.callers.part(caller):
            self._end_session(session)

    def died(self, process: Process) -> None:
        """A process has ended: so have its sessions, and it is in no lease any more."""
        for session in self.callers.of_process(process):
            self._end_session(session)
        for _, party in self.fence.of_process(process.pid, process.started_ticks):
            self._leave(party.ticket, "dead")

    def adopt_ledgers(self, lease: Lease) -> None:
        """A lease that stood in the ledger before the guard came: nobody's word but the ledger's, never signalled."""
        if lease.id in self.fence.leases:
            return
        self.unproven.add(lease.id)
        self.fence.enter(lease)
        for party in lease.parties:
            self.callers.own(party)

    def found(self, lease: Lease, gpus: tuple[str, ...]) -> None:
        """The ledger has this lease, on these gpus."""
        self.fresh.discard(lease.id)
        if set(gpus) != set(lease.gpus):
            _log.warning("guard.gpus_differ", lease=lease.id, message=f"{lease.gpus} was said, {gpus} is true")
            lease.gpus = gpus
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
        self.fence.forget(lease)
        self.over(lease, never=True)

    def over(self, lease: Lease, *, never: bool = False) -> None:
        """A lease is over, or was `never` granted: let in whom it kept out. A later grant of its ticket is another."""
        if self.fence.leases.get(lease.id) is not lease:
            return
        self.fence.remove(lease.id, never=never)
        self.unproven.discard(lease.id)
        self.fresh.discard(lease.id)
        self._journal.over(lease, never=never)
        self.runs.drop(lease.id)
        self.let_in()
        self.changed()

    def let_in(self) -> None:
        """Look again at those that wait, the latest grant first: an earlier one's turn is over."""
        for lease, caller in self._waiting.latest_first():
            verdict = self.fence.ask(lease)
            if isinstance(verdict, Waits):
                continue
            self._waiting.drop(lease.id)
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
        known = self.fence.lease_of(words.id)
        party = caller.party(words.id, session)
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
            answer = self._enter(lease, caller) if self.fence.ask(lease) == Admitted() else {}
        return "admitted" in answer

    def _enter(self, lease: Lease, caller: Caller) -> Words:
        lease.began_ms = lease.began_ms or round(boottime_s() * 1000)
        try:
            self._journal.entered(lease)
        except RecordUnwritable as full:
            self._waiting.put(lease, caller)
            _log.error("guard.record_unwritable", message=full.message)
            return {"waits": lease.id, "token": lease.token, "for": [], "why": full.message}
        if lease.id in self.fence.leases:
            self.runs.drop(lease.id)  # an earlier grant of the same ticket, which never began
        self.fence.enter(lease)
        self.fresh.add(lease.id)
        # The answer goes first: everybody waits for it, and the process is watched already.
        asyncio.get_running_loop().call_soon(self._entered, lease)
        return {"admitted": lease.id, "token": lease.token}

    def _leave(self, ticket: str, state: str = "left") -> None:
        lease = self.fence.lease_of(ticket)
        emptied = self.fence.leave(ticket, state)
        if lease is not None and state == "left":
            party = next(party for party in lease.parties if party.ticket == ticket)
            self.runs.let_go(lease.id, Process(party.pid, party.started))
        if emptied is not None and not emptied.lost and all(party.state == "left" for party in emptied.parties):
            self.left[emptied.id] = emptied.token, boottime_s()
            self.over(emptied)
        elif lease is not None:
            self.record(lease)
            self.changed()

    def _end_session(self, session: str) -> None:
        self.callers.forget(session)
        self.dead_sessions.add(session)
        for lease in list(self.fence.leases.values()):
            for party in lease.inside:
                if party.session == session:
                    self._leave(party.ticket, "dead")
        self.changed()

    def _entered(self, lease: Lease) -> None:
        """What follows from an entry."""
        if self.fence.leases.get(lease.id) is lease:
            follow(self.runs, lease, lease.holder)
        self.changed()

    def _joined(self, lease: Lease | None, party: Party | None) -> None:
        """Another process is in a lease; None: one may be, which must be found out."""
        if lease is not None and party is not None:
            self.record(lease)
            follow(self.runs, lease, party)
        else:
            self.changed()

    def record(self, lease: Lease) -> None:
        """Write a lease that has changed; a disk that is full is said, and costs only a later daemon's knowledge."""
        try:
            self._journal.entered(lease)
        except RecordUnwritable as full:
            _log.error("guard.record_unwritable", message=full.message)
