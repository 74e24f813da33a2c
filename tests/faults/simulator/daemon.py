"""The daemon of a host: the product's own guard, with its rounds as `settling.py` and `offering.py` have them."""

from __future__ import annotations

from typing import Any, cast

from gpulockd.daemon.admission import Admit, Hello, Leave
from gpulockd.daemon.assertions import GuardsWord
from gpulockd.daemon.callers import Caller
from gpulockd.daemon.fence import Lease, Party
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.settling import LOST_BY, UNHEARD_S
from gpulockd.hardware.processes.identity import Process
from gpulockd.settings import SettleBlock
from tests.faults.simulator.client import Client
from tests.faults.simulator.kernel import Followed, Watched
from tests.faults.simulator.link import LATENCY_S, GuardLink
from tests.faults.simulator.offering import IDLE_ROUND_S, Offering
from tests.faults.simulator.site import Site
from tests.faults.simulator.store import TIMES
from tests.faults.simulator.world import Away, Coroutine, Signal, sleep
from tests.lua.model import Ticket

GRACE_S = SettleBlock().grace
ROUND_S = 1.0
"""Between two looks at the ledger while something is under way: here no event tells of news."""

LOOK_S = 0.25


class Daemon(Offering):
    """One daemon, until it is killed."""

    def __init__(self, site: Site, number: int) -> None:
        super().__init__(site, number)
        assert site.record is not None
        self.serves = False
        self.callers: list[tuple[Caller, GuardLink]] = []
        record, self.news = site.record, Signal()
        self.guard = Guard(record.read(), cast("Any", record), cast("Any", Followed()), cast("Any", Watched(self)))
        self.guard.is_first = self.guard.doubtful = not record.was_read
        record.was_read = True
        self.guard.on_change = self.news.kick
        self.word = GuardsWord(self.guard)
        self.adopts = True
        self._leaving: set[tuple[str, int]] = set()
        self._vouched_at = -1e9

    def begin(self) -> None:
        """Start: the fence of before is watched again, then the door opens."""
        for lease in self.guard.fence.leases.values():
            for party in lease.inside:
                self.guard.callers.own(party)
        super().begin()
        self.spawn(self.offering())
        self.spawn(self._rounds())
        self.spawn(self._say_alive())
        self.serves = True

    def kill(self) -> None:
        """SIGKILL."""
        super().kill()
        self.store.hang_up(self.listens_as, silently=True)
        for _, link in self.callers:
            self.world.after(LATENCY_S, link.client.hear, link.hung_up, self)

    def begin_anew(self, ended: str, reason: str) -> None:
        """The pool has been without its guard for a while."""
        if ended == self.session:
            self.word.doubt()
            self.adopts = True
        super().begin_anew(ended, reason)

    # The door

    def take_line(self, caller: Caller, said: Hello | Admit | Leave) -> None:
        """A line on the guard's socket."""
        if isinstance(said, Leave):
            self.guard.leave(caller, said)
        elif isinstance(said, Hello):
            caller.say({"hello": True, **self.guard.hello(caller, said)})
        else:
            answer = self.guard.admit(caller, said)
            if answer is not None:
                caller.say(answer)

    def hung_up(self, caller: Caller) -> None:
        """A program has closed its connection."""
        self.callers = [(known, link) for known, link in self.callers if known is not caller]
        self.guard.gone(caller)

    def client_died(self, client: Client, process: Process) -> None:
        """A process has ended: its connections close, and the kernel tells."""
        for caller, link in self.callers:
            if link.client is client:
                self.guard.gone(caller)
        self.callers = [(caller, link) for caller, link in self.callers if link.client is not client]
        self.guard.died(process)

    def _say_alive(self) -> Coroutine:
        while True:
            for _, link in self.callers:
                if link.is_on(self):
                    link.daemon_said_alive()
            yield sleep(TIMES.keepalive)

    # The rounds

    def _rounds(self) -> Coroutine:
        while True:
            try:
                yield from self._round()
                guard = self.guard
                busy = (
                    guard.waiting
                    or guard.fence.fresh
                    or guard.left
                    or guard.dead_sessions
                    or self._leaving
                    or self.adopts
                )
                pause_s = ROUND_S if busy else IDLE_ROUND_S
            except Away:
                pause_s = 0.2
            yield self.news.within(pause_s)
            self.news.clear()
            yield sleep(0.02)

    def _round(self) -> Coroutine:
        guard = self.guard
        for session in list(guard.dead_sessions):
            yield from self.ask("end", "", session, None, "died", "session")
            guard.dead_sessions.discard(session)
        for lease in list(guard.fence.leases.values()):
            if not lease.inside and not lease.fresh:
                self._see_out(lease)
        yield from self._compare()
        if guard.waiting:
            guard.let_in()
        if self.clock() - self._vouched_at >= TIMES.keepalive:
            self._vouched_at = self.clock()
            for session in sorted(guard.fence.sessions_inside(guard.callers.hear)):
                yield self.store.ask(self, self.pool, "keepalive", session, 0, [])

    def _compare(self) -> Coroutine:
        guard = self.guard
        asked_for = dict(guard.fence.leases)
        said, _ = yield self.store.ask(self, self.pool, "picture")
        if said[0] != "snapshot" or said[1] > 0:
            return
        stands: dict[str, Ticket] = said[2]
        for id, lease in asked_for.items():
            ticket = stands.get(id)
            same = ticket is not None and ticket.token == lease.token
            if ticket is not None and same and (not lease.fresh or ticket.session == lease.holder.session):
                guard.found(lease, tuple(sorted(ticket.gpus)), exclusive=lease.exclusive)
            elif guard.fence.leases.get(id) is lease:
                yield from self._ended(lease)
        if self.adopts:
            self.adopts = False
            self._adopt(stands)
        for (id, session), (token, left_at) in list(guard.left.items()):
            ticket = stands.get(id)
            if ticket is None or (ticket.token, ticket.session) != (token, session):
                del guard.left[id, session]
            elif self.clock() - left_at >= UNHEARD_S:
                yield from self.ask("end", "", id, token, "released")
                guard.left.pop((id, session), None)
        for key, state in said[3].items():
            if state in ("settling", "quarantined") and self._is_clean(key, stands):
                yield from self.ask("report", "", key, "settled")

    def _is_clean(self, key: str, stands: dict[str, Ticket]) -> bool:
        left = [x for x in self.guard.fence.on(key) if x.lost or not x.inside or x.id not in stands]
        return self.world.bug == "no_wait_for_death" or not (left or self._on_card(key))

    def _on_card(self, key: str) -> bool:
        return self.host.occupied.get(key, 0.0) > self.world.now

    def _adopt(self, stands: dict[str, Ticket]) -> None:
        waiting = {lease.id for lease in self.guard.waiting}
        for ticket in stands.values():
            if ticket.state == "held" and ticket.id not in waiting:
                client = self.site.clients.get(ticket.session.partition("#")[0])
                process = self.site.process_of(client) if client else Process(0, 0)
                party = Party(ticket=ticket.id, session=ticket.session, pid=process.pid, started=process.started_ticks)
                gpus = tuple(sorted(ticket.gpus))
                self.guard.adopt_ledgers(
                    Lease(id=ticket.id, token=ticket.token, gpus=gpus, exclusive=True, parties=[party])
                )
        self.guard.doubtful = False

    def _ended(self, lease: Lease) -> Coroutine:
        guard = self.guard
        if lease.lost:
            return self._see_out(lease)
        said, _ = yield from self.ask("confirm", "", lease.id, 0)
        if guard.fence.leases.get(lease.id) is not lease:
            return None
        if said[0] not in ("gone", "lapsed"):
            return None
        if lease.fresh and (said[0] == "lapsed" or said[1] == "unknown"):
            return guard.throw_out(lease)
        if said[0] == "lapsed":
            guard.lost(lease, "lapsed", withdrawn=True)
        elif said[1] == "unknown":
            guard.lost(lease, "unknown", withdrawn=True)
        elif said[1] in LOST_BY and self.world.bug != "no_wait_for_death":
            guard.lost(lease, said[1])
        else:
            return guard.over(lease)
        return self._see_out(lease)

    # Seeing out

    def _see_out(self, lease: Lease) -> None:
        if self.world.bug == "no_wait_for_death":
            return self.guard.over(lease)
        if (lease.id, lease.token) not in self._leaving:
            self._leaving.add((lease.id, lease.token))
            self.spawn(self._seen_out(lease))
        return None

    def _seen_out(self, lease: Lease) -> Coroutine:
        leave_by = self.clock() + GRACE_S / 2
        while self._stands(lease) and lease.inside and self.clock() < leave_by:
            yield sleep(LOOK_S)
        if self._stands(lease) and not lease.withdrawn and lease.id not in self.guard.unproven:
            yield from self._end_run(lease)
        gone_at = self.clock() + TIMES.ttl
        while self._stands(lease) and (lease.inside or any(self._on_card(gpu) for gpu in lease.gpus)):
            yield sleep(LOOK_S)
            heard = any(self.guard.callers.hear(party.session) for party in lease.inside)
            if lease.withdrawn and self.clock() >= gone_at and not heard:
                break
        self.guard.over(lease)
        self._leaving.discard((lease.id, lease.token))
        self.news.kick()

    def _stands(self, lease: Lease) -> bool:
        return self.guard.fence.leases.get(lease.id) is lease

    def _end_run(self, lease: Lease) -> Coroutine:
        """SIGTERM ends who runs; who is stopped hears nothing before SIGKILL."""
        for waits_s in (0.0, GRACE_S):
            yield sleep(waits_s)
            for party in lease.inside if self._stands(lease) else ():
                client = self.site.client_of(Process(party.pid, party.started))
                if client is not None and (waits_s or not client.stopped):
                    self.site.kill(client)
