"""Model and scripts side by side: every verb goes to both, and answers, doorbells and all keys must be the same.

Besides, the invariants of docs/why.md that the keys show are checked on the keys alone, without the model.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Literal, Self

from gpulockd.ledger import verbs
from gpulockd.ledger.answers import Answer
from gpulockd.ledger.limits_verbs import Reached, reach
from gpulockd.ledger.publishing import publish
from gpulockd.ledger.verbs import Brought, BroughtLease, BroughtTicket, Call, EndReason, Terms
from gpulockd.model import Gpu, Job, Process, Wants
from tests.lua.harness import Ledger, Value, said
from tests.lua.model import HOLDS, Pool, Said, Server, Ticket

TERMS = Terms(
    ttl_ms=20_000, step_ms=7_000, keepalive_ms=5_000, claim_window_ms=3_000,
    priority_step_ms=1_000, hold_back_ms=8_000, settle_ms=6_000, settle_policy="after_loss",
)  # fmt: skip
LOCK_TIMEOUT_MS = 3_600_000
START_MS = 1_790_000_000_000
UNCHECKED = ("events", "counters", "offer")


class Disagreement(AssertionError):
    """The scripts did what the model does not, or broke an invariant."""


def card(index: int, memory_gib: int = 24) -> Gpu:
    """A card as a daemon offers it."""
    return Gpu(key=f"gpu_lock:{index}", index=index, uuid=f"GPU-{index}", name="card", memory_mib=memory_gib * 1024)


def budget(gib: int, *keys: str, count: int = 1) -> Wants:
    """Wants of a memory budget."""
    return Wants(count=len(keys) or count, keys=keys, memory_mib=gib * 1024, exclusive=False)


def on(*keys: str) -> Wants:
    """Wants of whole gpus by their key."""
    return Wants(count=len(keys), keys=keys)


class Both:
    """A pool twice: as the model has it and as the server has it.

    :param bug: other texts in the place of some Lua files
    """

    def __init__(self, url: str, pool: str, bug: dict[str, str] | None = None, terms: Terms = TERMS) -> None:
        self.terms = terms
        self.server = Server(wall_ms=START_MS, run_id=secrets.token_hex(20))
        self.present: set[str] = set()
        self.model = Pool(self.server, self.present.__contains__)
        self.ledger = Ledger(url, pool, self.server, bug)
        self.keys = self.ledger.keys
        self.highest_token = 0
        self.ended: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ledger.__exit__(kind, error, trace)

    def stage(self, *gpus: Gpu, listening: str = "abc") -> None:
        """A daemon d offers `gpus` (default: two cards), and processes a, b and c are there."""
        for session in "dabc":
            self.open(session)
        self.offer("d", *(gpus or (card(0), card(1, 48))))
        self.subscribe(*listening)

    def state(self, id: str) -> str:
        """The state of a ticket, as both have it: they agreed after the last call."""
        t = self.model.tickets.get(id)
        return t.state if t else f"ended: {self.model.tombs.get(id, 'unknown')}"

    def token(self, id: str) -> int:
        """The token of a claim or lease."""
        return self.model.tickets[id].token

    # Time, presence and disasters

    def pass_time(self, ms: int) -> None:
        """Let the server's TIME move; the ledger clock follows at the next script."""
        self.server.wall_ms += ms

    def live_on(self, ms: int, keep: Iterable[str] = ()) -> None:
        """Let `ms` pass in steps that the ledger clock follows whole, while the sessions in `keep` keep alive."""
        while ms > 0:
            self.pass_time(min(ms, 5_000))
            ms -= 5_000
            for session in keep:
                self.keepalive(session)
            self.look()

    def subscribe(self, *sessions: str) -> None:
        """These processes listen from now on."""
        for session in sessions:
            self.ledger.subscribe(session)
            self.present.add(session)

    def unsubscribe(self, session: str) -> None:
        """This process listens no more."""
        self.ledger.unsubscribe(session)
        self.present.discard(session)

    def restart_server(self) -> None:
        """The store comes back under another run id, with its data."""
        self.server.run_id = secrets.token_hex(20)

    def lose_all(self, *, flushed: bool = True) -> None:
        """The pool's keys are gone, as after FLUSHALL on the same server."""
        self.server.wall_ms = max(self.server.wall_ms, self.model.token + 1)
        self.ledger.lose_all()
        self.model.lose_all()
        self.server.flushed = flushed
        self.ended.clear()

    def delete(self, *names: str) -> None:
        """Somebody deletes keys of the pool by hand."""
        self.ledger.delete(*names)
        if "meta" in names:
            self.server.wall_ms = max(self.server.wall_ms, self.model.token + 1)
            self.model.lose_books()

    def remember(self) -> tuple[Pool, Any]:
        """What a replica has now."""
        shared = {id(self.server): self.server, id(self.model.listens): self.model.listens}
        return copy.deepcopy(self.model, shared), self.ledger.copy()

    def fail_over(self, replica: tuple[Pool, Any]) -> None:
        """That replica becomes the store: all that came after is lost."""
        self.server.wall_ms = max(self.server.wall_ms, self.model.token + 1)
        shared = {id(self.server): self.server, id(self.model.listens): self.model.listens}
        self.model = copy.deepcopy(replica[0], shared)
        self.ledger.put_back(replica[1])
        self.ended = set(self.model.tombs)
        self.restart_server()
        self.server.promoted = True

    def guard(self, session: str = "d", *, knows_all: bool = False) -> Said:
        """A daemon offers the gpus again, and its guard stands before them."""
        return self.offer(session, *self._gpus(), guarded=True, knows_all=knows_all)

    # The verbs

    def open(
        self,
        session: str,
        *,
        boot_id: str = "boot-1",
        known: bool | None = False,
        tickets: Iterable[BroughtTicket] = (),
        leases: Iterable[BroughtLease] = (),
        guard_gone_ms: int = 0,
        machine: str = "",
    ) -> Said:
        """Begin to be alive."""
        brought = Brought(tickets=list(tickets), leases=list(leases))
        process = Process(pid=1, host="host", boot_id=boot_id)
        call = verbs.open(
            self.keys, session=session, process=process, terms=self.terms, known_pool=known, brought=brought,
            guard_gone_ms=guard_gone_ms, machine=machine,
        )  # fmt: skip
        expected = self.model.open(
            session, boot_id, self.terms, known, brought.tickets, brought.leases,
            guard_gone_ms=guard_gone_ms, machine=machine,
        )  # fmt: skip
        return self._both(call, expected)

    def request(
        self,
        session: str,
        id: str,
        wants: Wants | None = None,
        *,
        priority: int = 0,
        wait: bool = True,
        lock_timeout_ms: int = LOCK_TIMEOUT_MS,
        asked_ms: int | None = None,
        inside: tuple[str, int] | None = None,
        parked: str = "",
    ) -> Said:
        """Take a place or the gpus at once."""
        wants = wants or Wants()
        call = verbs.request(
            self.keys, session=session, id=id, wants=wants, priority=priority, wait=wait, job=Job(task="test"),
            lock_timeout_ms=lock_timeout_ms, asked_ms=asked_ms, inside=inside, parked=parked,
        )  # fmt: skip
        expected = self.model.request(
            session, id, wants, priority, lock_timeout_ms, wait=wait, asked_ms=asked_ms, inside=inside, parked=parked
        )
        return self._both(call, expected)

    def confirm(self, session: str, id: str, token: int) -> Said:
        """The winner asks whether its claim stands."""
        call = verbs.confirm(self.keys, session=session, id=id, token=token)
        return self._both(call, self.model.confirm(session, id, token))

    def end(
        self,
        session: str,
        id: str,
        token: int | None = None,
        reason: EndReason = "released",
        what: Literal["ticket", "session"] = "ticket",
    ) -> Said:
        """End a ticket, a lease or a session."""
        call = verbs.end(self.keys, session=session, id=id, token=token, reason=reason, what=what)
        return self._both(call, self.model.end(session, id, token, reason, what))

    def keepalive(self, session: str, leases: Iterable[tuple[str, int]] | None = None) -> Said:
        """Extend a session; by default with all that it holds."""
        if leases is None:
            leases = [(t.id, t.token) for t in self.tickets() if t.session == session and t.state in ("held", "member")]
        call = verbs.keepalive(self.keys, session=session, echo=3, leases=list(leases))
        return self._both(call, self.model.keepalive(session, 3, leases))

    def progress(self, session: str, id: str, token: int) -> Said:
        """Say how far the work is."""
        call = verbs.progress(self.keys, session=session, id=id, token=token, percent=50, note="half")
        return self._both(call, self.model.progress(session, id, token))

    def reach(
        self, id: str, token: int, level: Reached, after_ms: int = 0, *, stop: bool = False, manual: bool = False
    ) -> Said:
        """A daemon has seen a lease at an age, or silent."""
        call = reach(self.keys, id=id, token=token, level=level, after_ms=after_ms, stop=stop, manual=manual)
        return self._both(call, self.model.reach(id, token, level, after_ms, stop=stop, manual=manual))

    def offer(
        self,
        session: str,
        *gpus: Gpu,
        boot_id: str = "boot-1",
        machine: str = "machine-1",
        terms: Terms | None = None,
        complete: bool = False,
        fresh: bool = False,
        known: bool = False,
        guarded: bool = False,
        knows_all: bool = False,
        highest_token: int = 0,
        offerer: str = "one",
        defaults: dict[str, Any] | None = None,
        version: int | None = None,
    ) -> Said:
        """A daemon offers its gpus."""
        terms, run_id = terms or self.terms, self.server.run_id if complete else None
        call = verbs.offer(
            self.keys, session=session, process=Process(pid=1, host="host", boot_id=boot_id), machine=machine,
            terms=terms, defaults=defaults or {}, version=version, gpus=gpus, complete_run_id=run_id, fresh=fresh,
            known_pool=known, guarded=guarded, knows_all=knows_all, highest_token=highest_token, offerer=offerer,
        )  # fmt: skip
        expected = self.model.make_offer(
            session, boot_id, machine, terms, gpus, complete=run_id, fresh=fresh, known=known,
            guarded=guarded, knows_all=knows_all, highest_token=highest_token, offerer=offerer,
            defaults=defaults, version=version,
        )  # fmt: skip
        return self._both(call, expected)

    def publish(self, session: str, version: int, defaults: dict[str, Any]) -> Said:
        """The daemon says something else to the pool's clients."""
        call = publish(self.keys, session=session, version=version, defaults=defaults)
        return self._both(call, self.model.publish(session, version, defaults))

    def report(self, session: str, key: str, state: str) -> Said:
        """A daemon says how a gpu is."""
        call = verbs.report(self.keys, session=session, gpu=key, state=state, reason="test")
        return self._both(call, self.model.report(session, key, state))

    def look(self) -> Said:
        """Somebody looks; the snapshot must show the model's leases, queue and gpus."""
        answer = self.ledger.ask(verbs.snapshot(self.keys))
        spoken = self._compare(answer, self.model.look(), "snapshot")
        if spoken == ("snapshot",):
            shown = answer.snapshot  # type: ignore[union-attr] # the word says which answer it is
            self._same("queue", [t.id for t in shown.queue], [t.id for t in self.model.queue()])
            held = {t.id: t.token for t in self.tickets() if t.state in (*HOLDS, "member")}
            self._same("leases", {t.id: t.token for t in shown.leases}, held)
            self._same("sessions", shown.sessions, len(self.model.sessions))
            self._same("offered", [g.gpu for g in shown.gpus if g.offered], self._gpus())
        return spoken

    def tickets(self) -> list[Ticket]:
        """What the model has: tickets, leases, members."""
        return list(self.model.tickets.values())

    def _gpus(self) -> list[Gpu]:
        return [self.model.cards[key].gpu for key in self.model.candidates(Wants())]

    # The comparison

    def _both(self, call: Call[Any], expected: Said) -> Said:
        return self._compare(self.ledger.ask(call), expected, repr(call))

    def _compare(self, answer: Any, expected: Said, what: str) -> Said:
        rung, self.model.rung = self.model.rung, []
        spoken = said(answer)
        self._same(f"answer of {what}", spoken, expected)
        if isinstance(answer, Answer):
            self._same("ledger clock", answer.now_ms, self.model.now)
            self._same("guarded", answer.clock.guarded, self.model.guarded)
            self._same("ttl", answer.clock.ttl_ms, self.model.agreed.ttl_ms)
            self._same("version", answer.clock.version, self.model.version)
        self._same("doorbells", sorted(map(_calm, self.ledger.heard())), sorted(map(_calm, rung)))
        found = self.ledger.all_keys()
        shown = expected_keys(self.model)
        self._same("names of keys", sorted(found.keys() - UNCHECKED), sorted(shown))
        for name, value in shown.items():
            there = found[name]
            if isinstance(value, dict) and isinstance(there, dict) and not _is_index(name):
                self._same(name, {field: there.get(field) or _nothing(value[field]) for field in value}, value)
            else:
                self._same(name, there, value)
        self._check_invariants(found)
        return spoken

    def _same(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            raise Disagreement(f"{what}: the scripts have {found!r}, the model {expected!r}")

    def _check_invariants(self, found: dict[str, Value]) -> None:
        """1, 2 and 3 on the keys alone, and that nothing stands on a gpu that is not its lease's."""
        tokens: dict[str, int] = {}
        on_gpu: dict[str, list[dict[str, Any]]] = {}
        for name, value in found.items():
            if not name.startswith("ticket:") or not isinstance(value, dict):
                continue
            fields: dict[str, Any] = dict(value)
            if fields["state"] in HOLDS:
                tokens[name] = int(fields["token"])
                for key in fields["gpus"].split(","):
                    on_gpu.setdefault(key, []).append(fields)
        for key, there in on_gpu.items():
            exclusive = [t for t in there if t["wants"].startswith("exclusive")]
            used_mib = sum(int(t["wants"].split(":")[2]) for t in there)
            memory_mib = self.model.card(key).gpu.memory_mib
            if len(exclusive) > 1 or (exclusive and len(there) > 1):
                raise Disagreement(f"invariant 1: {key} has {len(there)} leases, {len(exclusive)} of them exclusive")
            if not exclusive and memory_mib and used_mib > memory_mib:
                raise Disagreement(f"invariant 1: the budgets on {key} are {used_mib} MiB of {memory_mib}")
        if len(set(tokens.values())) != len(tokens):
            raise Disagreement(f"invariant 2: a token is given twice: {tokens}")


def _calm(rung: tuple[str, str]) -> tuple[str, str]:
    """An echo names what the session has in any order."""
    session, message = rung
    words = message.split()
    return session, " ".join(words[:2] + sorted(words[2:])) if words[0] == "echo" else message


def _nothing(expected: str) -> str:
    """A field that is not there is empty, and a number that is not there is 0."""
    return "0" if expected == "0" else ""


def _is_index(name: str) -> bool:
    return name in ("sessions", "queue", "offered", "gpus", "due", "held_back") or name.startswith(("queue:", "heads:"))


def expected_keys(pool: Pool) -> dict[str, Any]:
    """Every key that a pool in this state has, and the fields that mean something."""
    if pool.terms is None:
        return _with_ttl(pool)
    queue, tickets = pool.queue(), list(pool.tickets.values())
    keys: dict[str, Any] = {
        "meta": {
            "token": str(pool.token), "clock_ms": str(pool.now), "last_ms": str(pool.last), "run_id": pool.run_id,
            "frozen_until": str(pool.frozen_until), "frozen_why": pool.frozen_why, "opened": pool.how_opened,
            "stamp": str(pool.stamp), "offered": "1" if pool.offer else "0", "guarded": "1" if pool.guarded else "0",
            "was_guarded": pool.was_guarded, "version": str(pool.version),
        },
        "sessions": {id: float(s.ends_ms) for id, s in pool.sessions.items()},
        "queue": {t.id: float(t.score) for t in queue},
        "held_back": {t.id: float(t.score) for t in queue if t.chosen},
        "offered": {key: float(card.gpu.index or 0) for key, card in pool.cards.items()},
        "due": {f"lease:{t.id}": float(t.ends_ms) for t in tickets if t.state in HOLDS}
        | {f"settle:{key}": float(c.settles_ms) for key, c in pool.cards.items() if c.state == "settling"},
    }  # fmt: skip
    for id, session in pool.sessions.items():
        keys[f"session:{id}"] = {"boot_id": session.boot_id}
        keys[f"session_tickets:{id}"] = {t.id for t in tickets if t.session == id and not t.left}
    for t in queue:
        if t.state == "waiting":
            keys.setdefault(f"queue:{t.wants.text}", {})[t.id] = float(t.score)
    for t in pool.heads():
        for name in t.wants.keys or ("any",):
            keys.setdefault(f"heads:{name}", {})[t.wants.text] = float(t.score)
    for t in tickets:
        keys[f"ticket:{t.id}"] = _ticket_fields(t)
        keys[f"members:{t.id}"] = t.members
    taken = {*pool.cards, *(key for t in tickets if t.state in HOLDS for key in t.gpus)}
    there = {key: on for key in sorted(taken) if (on := _on_gpu(pool, key)) != "ready - 0 0"}
    keys["gpus"] = {key: on for key, on in there.items() if key not in pool.cards}
    offered = [key for key in pool.candidates(Wants()) if key in there]
    keys["meta"]["gpus"] = "".join(f"{key} {there[key]};" for key in offered)
    keys |= _with_ttl(pool)
    return {name: value for name, value in keys.items() if value}


def _with_ttl(pool: Pool) -> dict[str, Any]:
    tombs = {f"done:{id} (ttl)": reason for id, reason in pool.tombs.items()}
    return tombs | {f"parked:{id} (ttl)": str(stamp) for id, stamp in pool.parked.items()}


def _ticket_fields(t: Ticket) -> dict[str, str]:
    fields = {
        "state": t.state, "session": t.session, "wants": t.wants.text, "stamp": str(t.stamp), "token": str(t.token),
        "lock_timeout_ms": str(t.lock_timeout_ms), "of": t.of, "left": t.left, "priority": str(t.priority),
    }  # fmt: skip
    if t.state in HOLDS:
        fields["granted_ms"] = str(t.granted_ms)
        fields |= {"level": t.level, "beat_ms": str(t.beat_ms or ""), "missed_ms": str(t.missed_ms or "")}
        fields |= {"asked": "1" if t.asked else "", "asserted": _epoch_text(t.asserted)}
    if t.state in ("waiting", "away"):
        fields["score"] = str(t.score)
        fields["chosen"] = ",".join(t.chosen)
    return fields


def _epoch_text(epoch: tuple[str, int] | None) -> str:
    return f"{epoch[0][:8]}-{epoch[1]}" if epoch else ""


def _on_gpu(pool: Pool, key: str) -> str:
    holders = pool.holders(key)
    exclusive = [t.id for t in holders if t.wants.exclusive] or ["-"]
    shared = [t for t in holders if not t.wants.exclusive]
    return f"{pool.card(key).state} {exclusive[0]} {len(shared)} {pool.used_mib(key)}"
