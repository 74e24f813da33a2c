"""A process's standing in its pool, as `client/session.py`, `keeper.py` and `listening.py` have it."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from gpulockd.ledger.verbs import BroughtLease, BroughtTicket
from gpulockd.model import Wants
from tests.faults.simulator.store import TERMS, TIMES, Answer, Facts, Store
from tests.faults.simulator.world import Actor, Away, Coroutine, Host, Signal, sleep

RETRY_S = 0.25
SILENCE_S = 2 * TIMES.keepalive + TIMES.rpc_deadline
GUARD_SILENCE_S = TIMES.belief_s - TIMES.keepalive


class Vouches(Protocol):
    """The guard, as an entry sees it."""

    def vouches(self, entry: Entry) -> bool:
        """Whether it has let this lease in and stands."""


class Entry:
    """One ticket of a process, later its lease."""

    def __init__(self, id: str, session: str, wants: Wants, priority: int, lock_timeout_ms: int) -> None:
        self.id = id
        self.session = session
        self.wants = wants
        self.priority = priority
        self.lock_timeout_ms = lock_timeout_ms
        self.state: Literal["asking", "held", "ending"] = "asking"
        self.signal = Signal()
        self.claim: int | None = None
        self.claim_gpus: tuple[str, ...] = ()
        self.stamp: int | None = None
        self.token = 0
        self.gpus: tuple[str, ...] = ()
        self.granted_at = self.began_at = 0.0
        """By the clock of its process, and in true seconds."""
        self.lost = ""
        self.guard: Vouches | None = None

    @property
    def vouched(self) -> bool:
        """Whether the guard of this host stands for it."""
        return self.guard is not None and self.guard.vouches(self)

    def lose(self, reason: str) -> None:
        """It has ended without its holder."""
        if self.state == "held" and not self.lost:
            self.lost = reason
            self.signal.kick()

    def brought(self, token: int, gpus: tuple[str, ...], age_ms: int) -> BroughtLease:
        """What the ledger must be told of the lease."""
        return BroughtLease(stamp=self.stamp or 0, token=token, gpus=gpus, age_ms=age_ms, **self._words())

    def brought_ticket(self) -> BroughtTicket | None:
        """This ticket as it is asserted again, if it had a place."""
        if self.state != "asking" or self.stamp is None:
            return None
        return BroughtTicket(stamp=self.stamp, **self._words())

    def _words(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "wants": self.wants.text,
            "priority": self.priority,
            "job": "{}",
            "task": "",
            "task_id": "",
            "lock_timeout_ms": self.lock_timeout_ms,
        }


class Member(Actor):
    """A process with a session: opens it, keeps it alive, hears its doorbell."""

    def __init__(self, host: Host, name: str, store: Store, pool: int) -> None:
        super().__init__(host, name)
        self.store = store
        self.pool = pool
        self._incarnation = 0
        self.session = f"{name}#0"
        self.before: list[str] = []
        self.is_open = False
        self.table: dict[str, Entry] = {}
        self.facts: Facts | None = None
        self.asserted: tuple[str, int] | None = None
        self.believed_until = self.kept_until = 0.0
        self.highest_token = 0
        self.listens_as = ""
        self.listening = False
        self.heard_at = 0.0
        self.ear = Signal()
        self.awake = Signal()

    @property
    def guarded(self) -> bool:
        """Whether the pool's guard stood at the last answer."""
        return self.facts is not None and self.facts.guarded

    def begin(self) -> None:
        """Start its own threads."""
        self.spawn(self._keep_alive())
        self.spawn(self._listen())

    # Asking

    def ask(self, verb: str, *args: Any, deadline_s: float = TIMES.rpc_deadline) -> Coroutine:
        """Return the answer of a verb of this session, and when it was asked. Raises `Away`."""
        asked_at = self.clock()
        answer: Answer = yield self.store.ask(self, self.pool, verb, *args, deadline_s=deadline_s)
        if self.world.bug == "belief_from_answer":
            asked_at = self.clock()
        said, facts = answer
        if said[0] not in ("no_session", "unopened"):
            if verb == "keepalive" or not self.kept_until:
                self.kept_until = asked_at + TIMES.belief_s + TIMES.ttl
            self.heard(asked_at, facts)
            if verb not in ("open", "keepalive") and facts.epoch != self.asserted:
                self.awake.kick()
        return said, asked_at

    def heard(self, asked_at: float, facts: Facts) -> None:
        """An answer has extended the session."""
        self.facts = facts
        self.believed_until = max(self.believed_until, min(asked_at + TIMES.belief_s, self.kept_until))

    def believes(self, asked_at: float) -> bool:
        """Whether an answer to a request sent then still proves what it gave."""
        return self.clock() <= asked_at + TIMES.belief_s

    def ready(self) -> Coroutine:
        """Return once the session is open and its channel heard. Raises `Away`."""
        if not self.is_open:
            yield from self._open(None)
        if self.listens_as != self.session:
            yield from self._subscribe()

    def _open(self, known: bool | None) -> Coroutine:
        for _ in range(4):
            session = self.session
            leases = [e.brought(e.token, e.gpus, round((self.clock() - e.granted_at) * 1000)) for e in self._held()]
            tickets = [b for e in self.table.values() if (b := e.brought_ticket()) is not None]
            known = True if leases or tickets else known
            gone_ms = round(TIMES.guard_gone_after * 1000) if self.guarded else 0
            said, _ = yield from self.ask(
                "open", session, self.host.name, TERMS, known, tickets, leases, gone_ms, self.host.name
            )
            if said[0] == "fleet?":
                (_, known), _ = yield self.store.ask(self, self.pool, "fleet")
            elif said[0] == "gone":
                self.begin_anew(session, said[1])
            elif said[0] == "opened":
                self.is_open, self.asserted = True, self.facts.epoch if self.facts else None
                for id in said[2]:
                    if id in self.table:
                        self.table[id].lose("lost with the store's data")
                if known is False:
                    yield self.store.ask(self, self.pool, "enlist")
                return
        raise Away

    def _held(self) -> list[Entry]:
        return [e for e in self.table.values() if e.state == "held" and not e.lost and e.session == self.session]

    def begin_anew(self, ended: str, reason: str) -> None:
        """The session has ended: what it held is lost, and another one begins."""
        if self.session != ended:
            return
        self._incarnation += 1
        self.before.append(ended)
        self.session = f"{self.name}#{self._incarnation}"
        self.is_open = False
        self.kept_until = 0.0
        for entry in list(self.table.values()):
            if entry.session == ended:
                entry.lose(f"session {reason}")
                entry.signal.kick()

    # The keepalive thread

    def _keep_alive(self) -> Coroutine:
        pause_s = TIMES.keepalive
        while True:
            yield self.awake.within(pause_s)
            self.awake.clear()
            try:
                self._doubt()
                yield from self._keep()
                pause_s = TIMES.keepalive
            except Away:
                left_s = self._doubt()
                pause_s = max(0.01, min(RETRY_S, left_s)) if left_s > 0 else RETRY_S

    def _doubt(self) -> float:
        """Give up belief when it is over. Returns how much of it is left (in seconds)."""
        left_s = self.believed_until - self.clock()
        if left_s <= 0 and self.world.bug != "no_belief":
            for entry in self._held():
                if not entry.vouched:
                    entry.lose("cut off")
        return left_s

    def _keep(self) -> Coroutine:
        if self.facts is None:
            return
        held = self._held()
        said, _ = yield from self.ask("keepalive", self.session, 1, [(e.id, e.token) for e in held])
        if said[0] in ("no_session", "unopened"):
            yield from self._open_again()
            return
        has, lost = said[2], said[3]
        for id, reason in lost:
            if id in self.table:
                self.table[id].lose(reason)
        pairs = {(id, token) for id, token, _ in has}
        unsaid = any(e.state == "held" and not e.lost and (e.id, e.token) not in pairs for e in held)
        if (self.facts and self.facts.epoch != self.asserted) or unsaid:
            yield from self._open_again()
        for id, token, state in sorted(has):
            yield from self._repair(id, token, state)
        self.heard_at = self.clock() if self.listening and said[1] else self.heard_at

    def _repair(self, id: str, token: int, state: str) -> Coroutine:
        """What a lost message has left behind."""
        entry = self.table.get(id)
        if entry is None:
            yield from self.ask("end", self.session, id, None, "abandoned")
        elif entry.state == "asking" and self.world.bug != "no_poll":
            if state == "claim":
                entry.claim = token
            entry.signal.kick()

    def _open_again(self) -> Coroutine:
        for _ in range(3):
            yield from self._open(True)
            if self.is_open:
                for entry in list(self.table.values()):
                    if entry.state == "asking":
                        entry.signal.kick()
                return

    # The doorbell

    def _subscribe(self) -> Coroutine:
        session = self.session
        old = self.listens_as
        yield self.store.ask(self, self.pool, "subscribe", session)
        self.listens_as, self.listening, self.heard_at = session, True, self.clock()
        if old not in ("", session):
            self.store.hang_up(old, silently=True)

    def _listen(self) -> Coroutine:
        while True:
            left_s = self.heard_at + SILENCE_S - self.clock() if self.listening else 0.0
            yield self.ear.within(max(1.0, left_s))
            self.ear.clear()
            if not self.listens_as or (self.listening and self.clock() - self.heard_at <= SILENCE_S):
                continue
            if self.listening:
                self.store.hang_up(self.listens_as, silently=True)
            self.listening = False
            self._kick_all()
            try:
                yield from self._subscribe()
                self._kick_all()
            except Away:
                yield sleep(0.2)

    def _kick_all(self) -> None:
        if self.world.bug != "no_poll":
            for entry in list(self.table.values()):
                if entry.state == "asking":
                    entry.signal.kick()

    def deafened(self, session: str) -> None:
        """The subscription has broken."""
        if session == self.listens_as:
            self.heard_at = -1e9
            self.ear.kick()

    def take(self, session: str, message: str) -> None:
        """A message on the session's channel."""
        word, id, *more = message.split(" ")
        entry = self.table.get(id)
        self.heard_at = self.clock()
        if entry is None:
            return
        if word == "claim" and entry.state == "asking":
            entry.claim, entry.claim_gpus = int(more[0]), tuple(more[1].split(","))
            entry.signal.kick()
        elif word == "lost":
            self.awake.kick()  # a hint: the keepalive's answer says whether it is true
