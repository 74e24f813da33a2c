"""The protocol of a pool in plain Python: the oracle that the Lua scripts are held to.

Written from docs/why.md, not from the scripts: it keeps one list of tickets and tries them all, in the order of the
queue, wherever the scripts walk indices; what sits on a gpu is counted from the tickets. All times are in ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from gpulockd.ledger.verbs import BroughtLease, BroughtTicket, Terms
from gpulockd.model import Gpu, Wants

LATE_MS = 300_000
SESSIONS_OUTLASTED = 3
RANK = {"": 0, "warning": 1, "soft": 2, "hard": 3}
LOSSES = ("revoked", "expired", "left", "died", "overruled", "gpu_lost", "operator", "hard_timeout", "silent")
HOLDS = ("claim", "held")
GONE = ("died", "left")

Said = tuple[Any, ...]


@dataclass
class Server:
    """What the store's server says of itself."""

    wall_ms: int
    run_id: str
    uptime_s: int = 1000
    flushed: bool = False
    promoted: bool = False


@dataclass
class Ticket:
    """A place in the queue, later the lease of the same id, or a member of another lease."""

    id: str
    session: str
    wants: Wants
    priority: int
    lock_timeout_ms: int
    stamp: int
    score: int
    state: str
    token: int = 0
    gpus: tuple[str, ...] = ()
    granted_ms: int | None = None
    ends_ms: int = 0
    chosen: tuple[str, ...] = ()
    of: str = ""
    left: str = ""
    members: set[str] = field(default_factory=set)
    level: str = ""
    beat_ms: int | None = None
    asked: bool = False
    stop: bool = False
    asserted: tuple[str, int] | None = None
    missed_ms: int | None = None

    @property
    def order(self) -> tuple[int, str]:
        """Lower goes first."""
        return self.score, self.id


@dataclass
class Card:
    """An offered gpu; `settles_ms` is when its settling ends by itself."""

    gpu: Gpu
    state: str = "ready"
    settles_ms: int = 0


@dataclass
class Session:
    """A process being alive."""

    ends_ms: int
    boot_id: str


class Pool:
    """The books of one pool. Each verb answers as its script does: a word and what follows it."""

    def __init__(self, server: Server, listens: Callable[[str], bool]) -> None:
        self.server = server
        self.listens = listens
        self.rung: list[tuple[str, str]] = []
        self.lose_all()

    def lose_all(self) -> None:
        """The store lost every key of the pool."""
        self.lose_books()
        self.published: dict[str, Any] | None = None
        self.sessions: dict[str, Session] = {}
        self.tickets: dict[str, Ticket] = {}
        self.tombs: dict[str, str] = {}
        self.parked: dict[str, int] = {}

    def lose_books(self) -> None:
        """Somebody deleted the keys `meta` and `offered`: sessions, tickets and leases are there still."""
        self.terms: Terms | None = None
        self.run_id = ""
        self.now = self.last = self.token = self.stamp = 0
        self.frozen_until = 0
        self.frozen_why = self.how_opened = ""
        self.epoch: tuple[str, int] = ("", 0)
        self.epoch_token = 0
        self.guarded = False
        self.was_guarded = "unknown"  # when the freeze began
        self.offer_epoch: tuple[str, int] | None = None
        self.offer: dict[str, str] = {}
        self.version = 0
        self.cards: dict[str, Card] = {}

    # What is there

    @property
    def agreed(self) -> Terms:
        """The pool's terms."""
        assert self.terms is not None
        return self.terms

    def card(self, key: str) -> Card:
        """An offered gpu, or a slot without hardware."""
        return self.cards.get(key) or Card(Gpu(key=key))

    def holders(self, key: str) -> list[Ticket]:
        """The claims and leases on a gpu."""
        return [t for t in self.tickets.values() if t.state in HOLDS and key in t.gpus]

    def used_mib(self, key: str) -> int:
        """The budgets given on a gpu (in MiB)."""
        return sum(t.wants.memory_mib for t in self.holders(key) if not t.wants.exclusive)

    def queue(self) -> list[Ticket]:
        """All that wait, first first."""
        queued = [t for t in self.tickets.values() if t.state in ("waiting", "away")]
        return sorted(queued, key=lambda t: t.order) if len(queued) > 1 else queued

    def heads(self) -> list[Ticket]:
        """The first present ticket of each distinct wants: equal wants never overtake."""
        first: dict[Wants, Ticket] = {}
        for t in self.queue():
            if t.state == "waiting":
                first.setdefault(t.wants, t)
        return list(first.values())

    def candidates(self, wants: Wants) -> list[str]:
        """The gpus that these wants name."""
        return list(wants.keys or sorted(self.cards, key=lambda key: self.cards[key].gpu.index or 0))

    def suits(self, wants: Wants, key: str) -> bool:
        """Could it ever be there?"""
        return wants.memory_mib == 0 or (self.card(key).gpu.memory_mib or 0) >= wants.memory_mib

    def room(self, wants: Wants, key: str) -> bool:
        """Could it begin there now?"""
        if self.card(key).state != "ready" or not self.suits(wants, key):
            return False
        if wants.exclusive or any(t.wants.exclusive for t in self.holders(key)):
            return not self.holders(key)
        return self.used_mib(key) + wants.memory_mib <= (self.card(key).gpu.memory_mib or 0)

    # How every verb begins

    def _begin(self, session: str, terms: Terms | None = None, known: bool | None = None) -> Said | None:
        if self.terms is None and terms is None:
            return ("unopened",)
        wall = self.server.wall_ms
        if self.terms is None:
            self.terms, self.now = terms, wall
            self._open_epoch(missing=True, known=known)
        else:
            self.now += max(0, min(wall - self.last, self.agreed.step_ms))
            if self.server.run_id != self.run_id:
                self._open_epoch(missing=False, known=known)
        self.last = wall
        if self.frozen_until and self.now >= self.frozen_until:
            self._unfreeze()
            for t in self.queue():
                self._mean_slot_0(t)
        if not self.frozen_until:
            self._do_what_is_due()
        if session and session not in self.sessions:
            return ("no_session",)
        if session:
            self._extend(self.sessions[session])
        return None

    def _extend(self, session: Session) -> None:
        session.ends_ms = max(session.ends_ms, self.now + self.agreed.ttl_ms)

    def _open_epoch(self, *, missing: bool, known: bool | None) -> None:
        self.run_id = self.server.run_id
        if not missing and not self.frozen_until:
            self.was_guarded = "1" if self.guarded else "0"
        survived = [t.token for t in self.tickets.values() if t.state in HOLDS]
        self.token = self.epoch_token = max(self.token, self.server.wall_ms, *survived if missing else ())
        self.epoch = (self.run_id, self.token)
        ttl = self.agreed.ttl_ms
        if not missing:
            self._freeze(ttl, "data_lost" if self.frozen_until else "store_changed")
        elif survived or known is not False or self.server.flushed or self.server.promoted:
            self._freeze(ttl, "data_lost")
        else:
            if self.server.uptime_s * 1000 < ttl:
                self._freeze(ttl - self.server.uptime_s * 1000, "new_store")
            self.how_opened = "never_used"

    def _freeze(self, length_ms: int, why: str) -> None:
        self.frozen_until, self.frozen_why, self.how_opened = self.now + length_ms, why, "frozen"

    def _unfreeze(self) -> None:
        self.frozen_until, self.frozen_why = 0, ""

    def _mean_slot_0(self, t: Ticket) -> None:
        """In a pool that nobody offers, any gpu is gpu_lock:0, unless the offer may only be lost."""
        if not self.offer and not self.frozen_until and t.wants == Wants():
            t.wants, t.chosen = Wants(keys=("gpu_lock:0",)), ()

    def _do_what_is_due(self) -> None:
        silent = [(session.ends_ms, id) for id, session in self.sessions.items() if session.ends_ms <= self.now]
        for _, id in sorted(silent):
            self._end_session(id, "died")
        leases = [t for t in self.tickets.values() if t.state in HOLDS and t.ends_ms <= self.now]
        for t in sorted(leases, key=lambda t: (t.ends_ms, t.id)):
            if t.state == "claim":
                self._lapse(t)
            else:
                self._end_ticket(t, "expired")
        for key, card in self.cards.items():
            if card.state == "settling" and card.settles_ms <= self.now:
                guard_lives = self.guarded and self.offer.get("session") in self.sessions
                self._become(key, "quarantined" if guard_lives else "ready")
        self.place()

    def _lapse(self, t: Ticket) -> None:
        """Nobody has begun, so nothing is to settle."""
        t.state, t.token, t.gpus, t.granted_ms = "away", 0, (), None

    # Placement and hand-off

    def place(self) -> None:
        """Grant whatever can begin, first in the queue first."""
        while not self.frozen_until:
            for t in self.heads():
                keys = self._find(t)
                if keys is not None:
                    self._hand_off(t, keys)
                    break
            else:
                return

    def _find(self, t: Ticket) -> tuple[str, ...] | None:
        while True:
            keys = self._pick(t)
            chose = [self._others_choose(key, t) for key in keys or ()]
            if not any(chose):
                return keys

    def _pick(self, t: Ticket) -> tuple[str, ...] | None:
        def rank(key: str) -> tuple[int, int, str]:
            gpu = self.card(key).gpu
            first = (gpu.memory_mib or 0) if t.wants.memory_mib else 0
            return (first if t.wants.exclusive else -self.used_mib(key)), gpu.index or 0, key

        fit = [key for key in self.candidates(t.wants) if self.room(t.wants, key) and self._allowed(key, t)]
        return tuple(sorted(fit, key=rank)[: t.wants.count]) if len(fit) >= t.wants.count else None

    def _allowed(self, key: str, t: Ticket) -> bool:
        """No earlier ticket holds the gpu back."""
        return not any(key in other.chosen and other.order < t.order for other in self.queue() if other is not t)

    def _others_choose(self, key: str, t: Ticket) -> bool:
        """Earlier heads that have waited long enough choose, now that `t` would begin on a gpu they could use."""
        any_chose = False
        for other in self.heads():
            waited_enough = self.now - other.stamp >= self.agreed.hold_back_ms
            may = key in self.candidates(other.wants) and self.suits(other.wants, key)
            if other.order < t.order and waited_enough and may and not other.chosen:
                any_chose = self._choose(other) or any_chose
        return any_chose

    def _choose(self, t: Ticket) -> bool:
        def rank(key: str) -> tuple[int, int, int, str]:
            earlier = sum(key in other.chosen and other.order < t.order for other in self.queue())
            return earlier, len(self.holders(key)), self.card(key).gpu.index or 0, key

        able = [k for k in self.candidates(t.wants) if self.suits(t.wants, k)]
        able = [k for k in able if self.card(k).state in ("ready", "settling")]
        if len(able) >= t.wants.count:
            t.chosen = tuple(sorted(able, key=rank)[: t.wants.count])
        return bool(t.chosen)

    def _hand_off(self, t: Ticket, keys: tuple[str, ...]) -> None:
        self.token += 1
        t.chosen = ()
        if not self._ring(t.session, f"claim {t.id} {self.token} {','.join(keys)}"):
            t.state = "away"
            return
        t.state, t.token, t.gpus, t.granted_ms = "claim", self.token, keys, self.now
        t.ends_ms = self.now + self.agreed.claim_window_ms

    def _ring(self, session: str, message: str) -> bool:
        if self.listens(session):
            self.rung.append((session, message))
        return self.listens(session)

    def _hold(self, t: Ticket, keys: tuple[str, ...]) -> None:
        self.token += 1
        if t.state != "new":
            self._outlast(t)
        t.state, t.token, t.gpus, t.granted_ms, t.chosen = "held", self.token, keys, self.now, ()
        self._renew(t)

    def _renew(self, t: Ticket) -> None:
        t.ends_ms = max(t.ends_ms, self.now + t.lock_timeout_ms) if t.state == "held" else t.ends_ms

    def _outlast(self, t: Ticket) -> None:
        """What its process keeps alive ends with the process's session, never before it."""
        t.lock_timeout_ms = max(t.lock_timeout_ms, SESSIONS_OUTLASTED * self.agreed.ttl_ms)

    def _confirm(self, t: Ticket) -> None:
        self._outlast(t)
        t.state, t.ends_ms = "held", self.now + t.lock_timeout_ms

    # How things end

    def _vacate(self, keys: Iterable[str], *, lost: bool) -> None:
        policy = self.agreed.settle_policy
        for key in keys:
            card = self.cards.get(key)
            settles = self.guarded and (policy == "always" or (lost and policy == "after_loss"))
            if card is not None and card.state == "ready" and settles:
                card.state, card.settles_ms = "settling", self.now + self.agreed.settle_ms

    def _become(self, key: str, state: str) -> None:
        """A gpu that cannot be begun on is no choice: whoever chose it chooses anew."""
        self.cards[key].state = state
        if state not in ("ready", "settling"):
            self._unchoose(key)

    def _unchoose(self, key: str) -> None:
        for t in self.queue():
            if key in t.chosen:
                t.chosen = ()

    def _end_lease(self, t: Ticket, reason: str, *, planned: bool = False) -> None:
        lost = reason in LOSSES
        del self.tickets[t.id]
        self.tombs[t.id] = reason
        for member in sorted(t.members):
            m = self.tickets.pop(member)
            self.tombs[member] = reason
            if lost:
                self._ring(m.session, f"lost {member} {reason}")
        if lost and reason not in GONE and not planned:
            self._ring(t.session, f"lost {t.id} {reason}")
        self._vacate(t.gpus, lost=lost)

    def _end_ticket(self, t: Ticket, reason: str, *, planned: bool = False) -> None:
        """Only a loss ends a lease that still has members; otherwise the last of them does."""
        if t.state == "member":
            self._leave(t, reason)
        elif t.state in HOLDS and t.members and (reason in GONE or reason not in LOSSES):
            t.left = reason
            self.tombs[t.id] = reason
        elif t.state in HOLDS:
            self._end_lease(t, reason, planned=planned)
        else:
            del self.tickets[t.id]
            self.tombs[t.id] = reason

    def _leave(self, member: Ticket, reason: str) -> None:
        del self.tickets[member.id]
        self.tombs[member.id] = reason
        lease = self.tickets[member.of]
        lease.members.discard(member.id)
        if lease.left:
            lease.left = "died" if reason in LOSSES else lease.left
            if not lease.members:
                self._end_lease(lease, lease.left)

    def _end_session(self, id: str, reason: str) -> None:
        for t in [t for t in self.tickets.values() if t.session == id and not t.left]:
            if t.id in self.tickets:
                self._end_ticket(t, reason)
        del self.sessions[id]
        self.tombs[id] = reason
        if self.offer.get("session") == id:
            self.guarded = False

    # The verbs

    def open(
        self,
        session: str,
        boot_id: str,
        terms: Terms,
        known: bool | None,
        tickets: Iterable[BroughtTicket] = (),
        leases: Iterable[BroughtLease] = (),
        guard_gone_ms: int = 0,
        machine: str = "",
    ) -> Said:
        """Begin to be alive, and say what one has from before."""
        if known is None and self.terms is None:
            return ("fleet?",)
        tickets, leases = list(tickets), list(leases)
        self._begin("", terms, True if tickets or leases else known)
        if session in self.tombs:
            return ("gone", self.tombs[session])
        if self._offered_by_another_boot(boot_id) and self.offer["machine"] != machine:
            return ("elsewhere", self.offer["boot_id"])
        self._extend(self.sessions.setdefault(session, Session(0, boot_id)))
        self.sessions[session].boot_id = boot_id
        refused = [b.id for b in leases if not self._assert_lease(session, b)]
        for b in tickets:
            if b.id not in self.tickets and b.id not in self.tombs:
                self._mean_slot_0(self._take_up(session, b, "waiting"))
        if guard_gone_ms and self.frozen_until and not self.guarded and self.frozen_why != "guard_away":
            self._freeze(max(self.frozen_until - self.now, guard_gone_ms), "guard_away")
        self.place()
        return ("opened", self.how_opened, tuple(refused))

    def _offered_by_another_boot(self, boot_id: str) -> bool:
        return bool(self.offer) and self.offer["boot_id"] != boot_id and self.offer["session"] in self.sessions

    def _take_up(self, session: str, b: BroughtTicket, state: str) -> Ticket:
        self.stamp = max(self.stamp, b.stamp)
        score = b.stamp - b.priority * self.agreed.priority_step_ms
        wants = Wants.parse(b.wants)
        t = Ticket(b.id, session, wants, b.priority, b.lock_timeout_ms, b.stamp, score, state)
        self.tickets[t.id] = t
        return t

    def _assert_lease(self, session: str, b: BroughtLease) -> bool:
        """While frozen a lease has its gpus back, unless a higher token sits there."""
        stands = self.tickets.get(b.id)
        if b.id in self.tombs:
            return False
        if stands and stands.state == "held" and (stands.session, stands.token) == (session, b.token):
            stands.asserted = self.epoch if self.frozen_until else stands.asserted
            return True
        if self.how_opened == "never_used" and not self.frozen_until:
            self._freeze(self.agreed.ttl_ms, "data_lost")
        if not self.frozen_until:
            return False
        if stands and (stands.state in ("held", "member") or stands.token > b.token):
            return False
        goes = self._who_gives_way(b)
        if goes is None:
            return False
        for t in goes:
            if t.wants.exclusive or Wants.parse(b.wants).exclusive or not self._is_doubtful(t):
                self._end_lease(t, "overruled")
            else:  # it may be asserted yet
                del self.tickets[t.id]
        self.token = max(self.token, b.token)
        t = self._take_up(session, b, "held")
        self._outlast(t)
        t.token, t.gpus, t.granted_ms, t.ends_ms = b.token, b.gpus, self.now - b.age_ms, self.now + t.lock_timeout_ms
        t.asserted = self.epoch
        return True

    def _is_proven(self, t: Ticket) -> bool:
        """Whether it was granted in this epoch, or asserted since."""
        return t.token > self.epoch_token or t.asserted == self.epoch

    def _is_doubtful(self, t: Ticket) -> bool:
        return not self._is_proven(t) and not t.members

    def _who_gives_way(self, b: BroughtLease) -> list[Ticket] | None:
        """Whoever the lease cannot be beside, or None if one of them stays.

        Beside a whole card nobody is: the lower token is over. Of budgets that do not fit somebody is over, and first
        in doubt is who has not been asserted, then the lowest token.
        """
        wants, goes = Wants.parse(b.wants), list[Ticket]()
        for key in b.gpus:
            there = [t for t in self.holders(key) if t.id != b.id and t not in goes]
            whole = [t for t in there if t.wants.exclusive or wants.exclusive]
            budgets = sorted(
                [t for t in there if t not in whole], key=lambda t: (self._is_proven(t) or bool(t.members), t.token)
            )
            memory_mib = self.card(key).gpu.memory_mib
            goes += whole
            if any(t.token > b.token for t in whole):
                return None
            while memory_mib and sum(t.wants.memory_mib for t in budgets) + wants.memory_mib > memory_mib:
                if not budgets or (budgets[0].token > b.token and not self._is_doubtful(budgets[0])):
                    return None
                goes.append(budgets.pop(0))
        return goes

    def request(  # noqa: C901 - the verb with the most answers, in one place as an oracle should
        self,
        session: str,
        id: str,
        wants: Wants,
        priority: int,
        lock_timeout_ms: int,
        *,
        wait: bool = True,
        asked_ms: int | None = None,
        inside: tuple[str, int] | None = None,
        parked: str = "",
    ) -> Said:
        """Take a place, or the gpus at once."""
        if len(wants.keys) > 1:  # named in another order they are equal
            wants = replace(wants, keys=tuple(sorted(wants.keys)))
        refusal = self._begin(session)
        if refusal:
            return refusal
        if id in self.tombs:
            return ("gone", self.tombs[id])
        if asked_ms is not None and self.now - asked_ms > LATE_MS:
            return ("late",)
        t = self.tickets.get(id)
        if t is not None and t.session != session:
            return ("gone", "foreign")
        if t is not None and (t.state not in ("waiting", "away") or (self.frozen_until and t.state != "away")):
            self._renew(self.tickets[t.of] if t.of else t)
            return self._again(t)
        if t is not None and not self.frozen_until:
            impossible = self._never(t.wants)
            if impossible:
                self._end_ticket(t, "abandoned")
                self.place()
                return ("impossible", *impossible)
            if t.state != "away":
                return self._again(t)
        more = False
        if t is None:
            if not self.offer and wants == Wants() and not self.frozen_until:
                wants = Wants(keys=("gpu_lock:0",))
            t = Ticket(id, session, wants, priority, lock_timeout_ms, self.now, 0, "new")
            if inside and self._in_doubt(inside[0]):
                return self._again(t) if wait else ("busy",)
            lease = self._joinable(session, inside)
            if lease is not None and self._covers(lease, wants):
                t.state, t.of, t.token, t.gpus = "member", lease.id, lease.token, lease.gpus
                self.tickets[id] = t
                lease.members.add(id)
                return self._again(t)
            more = lease is not None
            impossible = None if self.frozen_until else self._never(wants)
            if impossible:
                return ("impossible", *impossible)
            if parked in self.parked:
                t.stamp = self.parked[parked]
            else:
                t.stamp = self.stamp = max(self.stamp + 1, self.now)
            t.score = t.stamp - priority * self.agreed.priority_step_ms
        first = min([o.order for o in self.heads() if o.wants == t.wants], default=t.order)
        keys = self._find(t) if t.order <= first and not self.frozen_until else None
        if keys is None and (more or not wait):
            return ("would_deadlock", inside[0]) if more and inside else ("busy",)
        if id not in self.tickets:
            self.parked.pop(parked, None)
        self.tickets[id] = t
        if keys is None:
            t.state = "waiting"
        else:
            self._hold(t, keys)
            self.place()
        return self._again(t)

    def _is_of_before(self, t: Ticket) -> bool:
        """Whether it was granted before the store changed: another may have had its gpus since."""
        return t.state in HOLDS and t.token <= self.epoch_token

    def _token_anew(self, t: Ticket) -> None:
        self.token += 1
        t.token = self.token

    def _again(self, t: Ticket) -> Said:
        late = self._is_of_before(t)
        if late and not self.frozen_until:
            self._token_anew(t)
        if t.state == "claim" and not self.frozen_until:
            self._confirm(t)
        if t.state == "held" and not (late and self.frozen_until):
            return self._granted(t)
        if t.state == "member" and not self._in_doubt(t.of):
            return ("joined", t.token, t.of, frozenset(t.gpus))
        ids = [other.id for other in self.queue()]
        place = ids.index(t.id) + 1 if t.id in ids else 0
        return ("waiting", place, len(ids), max(0, self.frozen_until - self.now), self.frozen_why)

    def _granted(self, t: Ticket) -> Said:
        begun = t.stamp if t.granted_ms is None else t.granted_ms
        return ("granted", t.token, frozenset(t.gpus), max(0, begun - t.stamp))

    def _in_doubt(self, lease: str) -> bool:
        """Whether the frozen pool does not know if that lease stands: its holder has not said so yet."""
        there = self.tickets.get(lease)
        return bool(self.frozen_until) and lease not in self.tombs and not (there and self._is_proven(there))

    def _joinable(self, session: str, inside: tuple[str, int] | None) -> Ticket | None:
        lease = self.tickets.get(inside[0]) if inside else None
        if not inside or lease is None or lease.state != "held" or lease.token != inside[1]:
            return None
        holder = self.sessions.get(lease.session)
        return lease if holder and holder.boot_id == self.sessions[session].boot_id else None

    def _covers(self, lease: Ticket, wants: Wants) -> bool:
        """A whole card may be shared further, a budget may not grow."""
        has = lease.wants
        if wants.exclusive and not has.exclusive:
            return False
        enough = [
            k for k in lease.gpus if (self.suits(wants, k) if has.exclusive else wants.memory_mib <= has.memory_mib)
        ]
        return set(wants.keys) <= set(lease.gpus) and len(enough) >= wants.count

    def _never(self, wants: Wants) -> tuple[str, str] | None:
        """Why that can never be granted: against all offered gpus, quarantined ones too."""
        if not wants.keys:
            if not self.offer:
                return "not_offered", ""
            if wants.count > len(self.cards):
                return "too_many_gpus", str(len(self.cards))
            if wants.count > sum(self.suits(wants, key) for key in self.cards):
                return "too_much_memory", str(max(card.gpu.memory_mib or 0 for card in self.cards.values()))
        for key in sorted(wants.keys):
            memory_mib = self.card(key).gpu.memory_mib
            if self.offer and key not in self.cards and key.removeprefix("gpu_lock:").isdigit():
                return "no_such_gpu", key
            if wants.memory_mib and memory_mib is None:
                return "no_memory", key
            if not self.suits(wants, key):
                return "too_much_memory", str(memory_mib)
        return None

    def confirm(self, session: str, id: str, token: int) -> Said:
        """Ask whether the lease stands."""
        refusal = self._begin(session)
        if refusal:
            return refusal
        t = self.tickets.get(id)
        if t is None:
            return ("gone", self.tombs.get(id, "unknown"))
        if t.state not in (*HOLDS, "member") or (t.session, t.token) != (session, token):
            return ("lapsed",)
        late = self._is_of_before(t)
        if ((t.state == "claim" or late) and self.frozen_until) or (t.of and self._in_doubt(t.of)):
            return ("frozen", max(0, self.frozen_until - self.now), self.frozen_why)
        if late:
            self._token_anew(t)
        if t.state == "claim":
            self._confirm(t)
        self._renew(self.tickets[t.of] if t.of else t)
        return self._granted(t)

    def end(self, session: str, id: str, token: int | None, reason: str, what: str = "ticket") -> Said:
        """Release, abandon, revoke, or close a session."""
        refusal = self._begin(session)
        if refusal:
            return refusal
        if what == "session":
            if id not in self.sessions:
                return ("gone", "unknown")
            self._end_session(id, reason)
            self.place()
            return ("ended", reason)
        t = self.tickets.get(id)
        if t is None:
            said = self.tombs.get(id, "unknown")
            self.tombs.setdefault(id, reason)
            return ("gone", said)
        if session not in ("", t.session) or token not in (None, t.token):
            return ("stale", t.token)
        if reason == "parked" and t.state not in ("held", "member"):
            self.parked[id] = t.stamp
        self._end_ticket(t, reason, planned=reason == "expired")
        self.place()
        return ("ended", reason)

    def keepalive(self, session: str, echo: int, leases: Iterable[tuple[str, int]]) -> Said:
        """Extend the session and renew what it holds."""
        refusal = self._begin(session)
        if refusal:
            return refusal
        mine = [t for t in self.tickets.values() if t.session == session and t.state != "waiting" and not t.left]
        has = {(t.id, t.token, t.state) for t in mine}
        lost, stops = set(), set()
        for id, token in leases:
            t = self.tickets.get(id)
            if t and (t.session, t.token) == (session, token) and t.state in ("held", "member"):
                lease = self.tickets[t.of] if t.of else t
                self._outlast(lease)
                self._renew(lease)
                stops |= {id} if lease.stop else set()
            elif not self.frozen_until:
                lost.add((id, self.tombs.get(id, "overruled")))
        listeners = self._ring(session, f"echo {echo} " + " ".join(sorted(f"{i}:{n}:{s}" for i, n, s in has)))
        return ("alive", int(listeners), frozenset(has), frozenset(lost), frozenset(), frozenset(stops))

    def progress(self, session: str, id: str, token: int) -> Said:
        """Say how far the work is."""
        refusal = self._begin(session)
        if refusal:
            return refusal
        t = self.tickets.get(id)
        if t is None:
            return ("gone", self.tombs.get(id, "unknown"))
        if (t.session, t.token) != (session, token) or t.state not in ("held", "member"):
            return ("stale", t.token)
        lease = self.tickets[t.of] if t.of else t
        lease.beat_ms = self.now
        self._renew(lease)
        return ("noted", "")

    def reach(self, id: str, token: int, level: str, after_ms: int, *, stop: bool, manual: bool) -> Said:
        """A daemon has seen a lease at an age, or silent."""
        refusal = self._begin("")
        if refusal:
            return refusal
        t = self.tickets.get(id)
        if t is None:
            return ("gone", self.tombs.get(id, "unknown"))
        if t.state != "held" or t.token != token:
            return ("stale", t.token)
        assert t.granted_ms is not None
        since, is_new = t.granted_ms, level in RANK and RANK[level] > RANK[t.level]
        if level == "silent":
            spoke = t.granted_ms if t.beat_ms is None else t.beat_ms
            since = spoke if manual else t.ends_ms - t.lock_timeout_ms
            is_new = t.missed_ms is None or t.missed_ms < since
        if level == "operator":
            is_new = not t.asked
        if self.now - since < after_ms:
            return ("marked", "early", t.level)
        for one in [t, *(self.tickets[member] for member in t.members)] if stop else []:
            one.stop = one is t or one.stop
            self._ring(one.session, f"stop {one.id}")
        if not is_new:
            return ("marked", "noted", t.level)
        was = t.level
        if level == "silent":
            t.missed_ms = self.now
        elif level == "operator":
            t.asked = True
        else:
            t.level = level
        return ("marked", "reached", was)

    def make_offer(
        self,
        session: str,
        boot_id: str,
        machine: str,
        terms: Terms,
        gpus: Iterable[Gpu],
        *,
        complete: str | None,
        fresh: bool,
        known: bool,
        guarded: bool = False,
        knows_all: bool = False,
        highest_token: int = 0,
        offerer: str = "",
        defaults: dict[str, Any] | None = None,
        version: int | None = None,
    ) -> Said:
        """Put gpus at the pool's disposal; a killed daemon's next one takes over, another one does not."""
        self._begin("", terms, known)
        if session not in self.sessions:
            return ("no_session",)
        same_machine = self.offer.get("machine") == machine
        if not same_machine and self._offered_by_another_boot(boot_id):
            return ("elsewhere", self.offer["boot_id"])
        before_me = self.offer.get("session", session)
        rebooted = same_machine and self.offer["boot_id"] != boot_id
        self.guarded = self.guarded and not rebooted
        if before_me != session and before_me in self.sessions:
            if self.offer["offerer"] != offerer and self.offer["boot_id"] == boot_id:
                return ("elsewhere", boot_id)
            self._end_session(before_me, "died")
        if complete == self.run_id and self.frozen_until and (fresh or self.frozen_why == "store_changed"):
            self._unfreeze()
            self.how_opened = "nothing_lost"
        if knows_all and self.offer.get("session") == session and self.offer_epoch == self.epoch:
            self._known_by_guard()
        self.token = max(self.token, highest_token)
        if rebooted:
            for id in [id for id, s in self.sessions.items() if s.boot_id == self.offer["boot_id"]]:
                self._end_session(id, "died")
        before, self.cards = self.cards, {}
        for gpu in gpus:
            self.cards[gpu.key] = before.get(gpu.key, Card(gpu))
        for key in before.keys() - self.cards.keys():
            self._unchoose(key)
        self.terms, self.guarded, self.offer_epoch = terms, guarded, self.epoch
        self.offer = {"session": session, "boot_id": boot_id, "machine": machine, "offerer": offerer}
        self._offer_defaults(defaults or {}, version)
        self.place()
        return ("offered", self.how_opened, max(0, self.frozen_until - self.now))

    def _offer_defaults(self, defaults: dict[str, Any], known: int | None) -> None:
        """An offer brings what its daemon says, unless the pool has something later than the daemon knows."""
        if known is None or known >= self.version:
            self.version = max(self.version + (defaults != self.published), known or 0)
            self.published = defaults

    def publish(self, session: str, version: int, defaults: dict[str, Any]) -> Said:
        """The daemon that offers the pool says something else, under a version above the pool's."""
        if refusal := self._begin(session):
            return refusal
        orphaned = not session and self.offer.get("session") not in self.sessions
        if not self.offer or (self.offer.get("session") != session and not orphaned):
            return ("not_offered",)
        if (version, defaults) == (self.version, self.published):
            return ("published", version, defaults)
        if version <= self.version:
            return ("superseded", self.version, self.published)
        self.version, self.published = version, defaults
        return ("published", version, defaults)

    def _known_by_guard(self) -> None:
        """Nobody unknown is on a gpu; who waits is in the books, or needs a step to be back."""
        if not self.frozen_until:
            return
        if self.was_guarded == "0":
            self.frozen_until = min(self.frozen_until, self.now + self.agreed.ttl_ms)
            return
        if self.frozen_why == "store_changed":
            self._unfreeze()
        else:
            self.frozen_until = min(self.frozen_until, self.now + self.agreed.step_ms)
        self.how_opened = "known_by_guard"

    def report(self, session: str, key: str, state: str) -> Said:
        """Say how a gpu is."""
        refusal = self._begin(session)
        if refusal:
            return refusal
        if key not in self.cards:
            return ("unknown_gpu",)
        was = self.cards[key].state
        if state == "foreign":
            return ("noted", was)
        if state == "settled" and was not in ("settling", "quarantined"):
            return ("noted", was)
        self._become(key, "ready" if state in ("settled", "resumed") else state)
        self.place()
        return ("noted", was)

    def look(self) -> Said:
        """A snapshot by somebody without a session: it does what is due."""
        return self._begin("") or ("snapshot",)
