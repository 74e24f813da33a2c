"""A program: some tasks, each of which asks, confirms, is let in, works and releases, as `client/waiting.py` has it."""

from __future__ import annotations

from gpulockd.client.table import SESSIONS_OUTLASTED
from gpulockd.model import Wants
from tests.faults.simulator.link import GuardAway, GuardLink, NotAdmitted
from tests.faults.simulator.session import Entry, Member
from tests.faults.simulator.site import Site
from tests.faults.simulator.store import TIMES, Facts
from tests.faults.simulator.world import Away, Coroutine, sleep
from tests.lua.model import Said

POLL_S, MOST_POLL_S = 2.0, 10.0
FIRST_RETRY_S, MOST_RETRY_S = 0.05, 1.0


class Again(Exception):
    """Ask under a new id: the old one has ended with its session, or was too old."""


class Client(Member):
    """One process; `rounds` are what each of its tasks still has to do, and outlive it."""

    def __init__(self, site: Site, name: str, rounds: list[int]) -> None:
        super().__init__(site.host, name, site.store, site.pool)
        self.site = site
        self.rounds = rounds
        self.link = GuardLink(self)
        self.in_body: dict[str, Entry] = {}
        self._asked = 0
        self._went_on_at = -1.0

    def begin(self) -> None:
        """Start."""
        super().begin()
        for number in range(len(self.rounds)):
            self.spawn(self._work(number))

    def heard(self, asked_at: float, facts: Facts) -> None:
        """As every member; a guard that has come is told what is held here."""
        came = facts.guarded and not self.guarded
        super().heard(asked_at, facts)
        if came:
            self.link.look()

    # Its faults

    def go_on(self) -> None:
        """SIGCONT: what it believed too long is lost before anything else runs in it."""
        if self.stopped and self.alive:
            self._went_on_at = self.world.now
            self.link.went_on()
            if self.world.bug != "no_belief" and self.clock() > self.believed_until:
                for entry in self._held():
                    if not entry.vouched:
                        entry.lost = "stopped for too long"
                        if entry.id in self.in_body:
                            self._leave_body(entry, "lost")
                            entry.signal.kick()
        super().go_on()

    def kill(self) -> None:
        """SIGKILL."""
        for entry in list(self.in_body.values()):
            if self.stopped and not self.site.fenced_since(self.stopped_at):
                self._leave_body(entry, "lost")
        super().kill()

    # Its work

    def _work(self, number: int) -> Coroutine:
        dice = self.world.dice
        while self.rounds[number]:
            yield sleep(dice.uniform(0.0, 4.0))
            entry = yield from self._hold(*self.site.wish())
            yield from self._body(entry, dice.choice((0.5, 2.0, 5.0, 8.0, 30.0)) * dice.uniform(0.5, 1.0))
            yield from self._release(entry)
            self.rounds[number] -= 1

    def _body(self, entry: Entry, hold_s: float) -> Coroutine:
        until_s = self.clock() + hold_s
        name, told = self.name, self.world.note
        told(name, "enter", entry.id, token=entry.token, gpus=entry.gpus)
        told(name, "use", entry.id, token=entry.token, gpus=entry.gpus)
        entry.began_at = self.world.now
        self.in_body[entry.id] = entry
        while entry.id in self.in_body:
            left_s = until_s - self.clock()
            if entry.lost:
                self._leave_body(entry, "lost")
            elif left_s <= 0:
                self._leave_body(entry, "left")
            else:
                belief_s = max(0.05, self.believed_until - self.clock())
                yield entry.signal.within(min(left_s, belief_s))
                entry.signal.clear()
                late = self.clock() > self.believed_until and not entry.vouched
                if late and self.world.bug != "no_belief":
                    entry.lose("cut off")

    def _leave_body(self, entry: Entry, what: str) -> None:
        """The body is over. One that stood still, and was not fenced, was over when it was stopped."""
        del self.in_body[entry.id]
        stood_still = self.stopped or self._went_on_at == self.world.now
        had_begun = entry.began_at < self.stopped_at
        late = stood_still and had_begun and not self.site.fenced_since(self.stopped_at)
        self.world.note(self.name, what, entry.id, at_s=self.stopped_at if late else None)

    def _release(self, entry: Entry) -> Coroutine:
        token = entry.token
        entry.state = "ending"
        self.link.leave(entry)
        self.spawn(self._end(entry, token, "released"))
        yield sleep(0.0)

    def _end(self, entry: Entry, token: int | None, reason: str) -> Coroutine:
        """Until it is answered."""
        pause_s = FIRST_RETRY_S
        while True:
            try:
                if self.world.bug == "blind_release" and reason == "released":
                    said, _ = yield from self.ask("end_blindly", entry.gpus)
                else:
                    said, _ = yield from self.ask("end", entry.session, entry.id, token, reason)
                if said[0] in ("no_session", "unopened"):
                    self.awake.kick()
                break
            except Away:
                yield sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)
        self.table.pop(entry.id, None)

    # Its waiting

    def _entry(self, wants: Wants, priority: int) -> Entry:
        self._asked += 1
        timeout_ms = self.world.dice.choice((15_000, 70_000, 3_600_000))
        outlasting_ms = max(timeout_ms, SESSIONS_OUTLASTED * round(TIMES.ttl * 1000))
        entry = Entry(f"{self.name}.{self._asked}", self.session, wants, priority, outlasting_ms)
        self.table[entry.id] = entry
        return entry

    def _hold(self, wants: Wants, priority: int) -> Coroutine:
        key = f"{self.name}.{self._asked + 1}"
        self.world.note(self.name, "ask", key)
        entry, retry_s, poll_s = self._entry(wants, priority), FIRST_RETRY_S, POLL_S
        while True:
            try:
                yield from self.ready()
                if entry.claim is None and entry.session != self.session:
                    raise Again
                answer = yield from self._step(entry)
                if answer == "entered":
                    # The wait is known by its first ticket.
                    if entry.id != key:
                        self.world.note(self.name, "cancelled", key)
                    return entry
                retry_s = FIRST_RETRY_S
                if answer == "again":
                    continue
                pause_s = 1e6
                if answer[0] == "waiting":
                    entry.stamp = entry.stamp if entry.stamp is not None else self.facts.now_ms if self.facts else 0
                    pause_s = min(answer[3] / 1000 + 0.005, TIMES.keepalive) if answer[3] else 1e6
                    if self.guarded:
                        self.link.look()
                elif answer[0] == "frozen":
                    pause_s = min(answer[1] / 1000, TIMES.keepalive)
                if not self.listening and self.world.bug != "no_poll":
                    pause_s = min(pause_s, poll_s)
                    poll_s = min(1.5 * poll_s, MOST_POLL_S)
                yield entry.signal.within(pause_s)
                entry.signal.clear()
            except Away:
                yield entry.signal.within(retry_s)
                entry.signal.clear()
                retry_s = min(2 * retry_s, MOST_RETRY_S)
            except Again:
                self.link.leave(entry)
                self.table.pop(entry.id, None)
                entry = self._entry(wants, priority)

    def _step(self, entry: Entry) -> Coroutine:
        """One look: `entered`, `again`, or the answer to wait by."""
        entry.signal.clear()
        if entry.claim is not None:
            token, entry.claim = entry.claim, None
            if self.world.bug == "no_confirm" and entry.claim_gpus:
                entry.token, entry.gpus, entry.state = token, entry.claim_gpus, "held"
                return "entered"
            return (yield from self._confirm(entry, token))
        asked_ms = self.facts.now_ms if self.facts and self.session == entry.session else None
        verb = (entry.session, entry.id, entry.wants, entry.priority, entry.lock_timeout_ms)
        said, asked_at = yield from self.ask("request", *verb, asked_ms)
        if said[0] == "granted":
            entry.stamp = self.facts.now_ms - said[3] if self.facts else 0
            return (yield from self._enter(entry, said, asked_at))
        return (yield from self._other(entry, said))

    def _confirm(self, entry: Entry, token: int) -> Coroutine:
        said, asked_at = yield from self.ask("confirm", entry.session, entry.id, token)
        if said[0] == "granted":
            return (yield from self._enter(entry, said, asked_at))
        if said[0] == "frozen":
            return said
        self.link.leave(entry)
        if said[0] in ("no_session", "unopened", "gone"):
            return (yield from self._other(entry, said))
        return "again"

    def _enter(self, entry: Entry, said: Said, asked_at: float) -> Coroutine:
        token, gpus = said[1], tuple(sorted(said[2]))
        if not self.believes(asked_at):
            return (yield from self._confirm(entry, token))
        asks = self.guarded or self.link.is_alive
        if not asks and self.site.is_guarded:
            asks = yield from self.link.stands()
        if asks and self.world.bug != "no_guard_check":
            try:
                yield self.link.admit(entry, token, gpus)
            except GuardAway:
                entry.claim = token
                yield sleep(0.2)
                return "again"
            except NotAdmitted:
                entry.state = "ending"
                self.spawn(self._end(entry, None, "abandoned"))
                raise Again from None
            entry.guard = self.link
            if not self.believes(asked_at):
                return (yield from self._confirm(entry, token))
        entry.token, entry.gpus, entry.state, entry.granted_at = token, gpus, "held", self.clock()
        return "entered"

    def _other(self, entry: Entry, said: Said) -> Coroutine:
        if said[0] in ("no_session", "unopened"):
            self.is_open = False
            yield from self.ready()
            if entry.session != self.session:
                raise Again
            return "again"
        if said[0] == "late":
            raise Again
        if said[0] == "gone":
            yield from self.ready()
            raise Again
        if said[0] == "impossible":  # the pool has lost its offer, which comes back
            yield sleep(1.0)
            raise Again
        return said
