"""Every script against the model: Hypothesis finds the order of calls in which they would differ.

After every step the answers, the doorbells and every key of the pool are compared, and the invariants checked.
`HYPOTHESIS_PROFILE=deep` looks for longer.
"""

from __future__ import annotations

import os
import secrets
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpulockd.ledger.limits_verbs import Reached
from gpulockd.ledger.verbs import BroughtLease, BroughtTicket, EndReason
from gpulockd.model import Gpu, Wants
from tests.lua.both import UNCHECKED, Both, Disagreement, budget, card, on
from tests.lua.model import Pool, Ticket
from tests.servers import Server

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
PROFILE = settings(
    max_examples=2_000 if DEEP else 100,
    stateful_step_count=60 if DEEP else 40,
    deadline=None,  # a noisy machine is no bug
    derandomize=not DEEP,  # every run tries the same examples: what passed here passes elsewhere
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

WHO = st.sampled_from("aabbcx")  # x runs on another boot
WHICH = st.integers(0, 31)
GPUS = st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True)
MEMORY_GIB = (24, 48, 16, 24)
WANTS = st.one_of(
    st.just(Wants()),
    st.builds(Wants, count=st.integers(1, 4)),
    GPUS.map(lambda numbers: on(*(f"gpu_lock:{n}" for n in numbers[:2]))),
    st.sampled_from([on("gpu_lock:ocr"), on("gpu_lock:0", "gpu_lock:ocr"), on("gpu_lock:7")]),
    st.builds(lambda gib, count: budget(gib, count=count), st.sampled_from([8, 16, 40, 64]), st.integers(1, 2)),
    st.builds(lambda gib, n: budget(gib, f"gpu_lock:{n}"), st.sampled_from([8, 16]), st.integers(0, 3)),
    st.builds(lambda gib: Wants(memory_mib=gib * 1024), st.sampled_from([16, 24, 40])),
)
POLICIES = st.sampled_from(["after_loss", "after_loss", "after_loss", "always", "never"])
REASONS: tuple[EndReason, ...] = (
    "released",
    "released",
    "abandoned",
    "parked",
    "parked",
    "timed_out",
    "expired",
    "left",
    "revoked",
    "died",
    "gpu_lost",
    "operator",
)


class ScriptsAgreeWithModel(RuleBasedStateMachine):
    """Processes a, b, c and x, the daemons d and e of one host, and everything that may happen to them."""

    url = ""
    bug: dict[str, str] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.both = Both(self.url, f"t-{secrets.token_hex(6)}", self.bug)
        self.said: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.incarnation = dict.fromkeys("abcdex", 0)
        self.from_before: dict[str, list[Ticket]] = {}
        self.replica: tuple[Pool, Any] | None = None
        self.ids = 0

    def teardown(self) -> None:
        """When everything has ended only permanent keys, offered gpus and keys with a TTL are left (invariant 11)."""
        with self.both as both:
            if both.model.terms is None:
                return
            for session in list(both.model.sessions):
                both.end("", session, reason="released", what="session")
            for t in both.tickets():
                both.end("", t.id, reason="revoked")
            both.live_on(80_000)  # freezes end and gpus settle
            left = {name for name in both.ledger.all_keys() if not name.endswith(" (ttl)")}
            kept = {*UNCHECKED, "meta", "offered"}
            if left - kept:
                raise Disagreement(f"invariant 11: keys are left behind: {sorted(left - kept)}")

    # Helpers

    def say(self, verb: str, *args: Any, **words: Any) -> None:
        self.said.append((verb, args, words))
        getattr(self.both, verb)(*args, **words)

    def session(self, who: str) -> str:
        return f"{who}{self.incarnation[who]}"

    def ticket(self, which: int, *states: str) -> Ticket | None:
        found = [t for t in self.both.tickets() if not states or t.state in states]
        return found[which % len(found)] if found else None

    def boot_of(self, who: str) -> str:
        return "boot-2" if who == "x" else "boot-1"

    # Sessions

    @initialize(numbers=GPUS, offered=st.sampled_from([True, True, True, False]), guarded=st.booleans())
    def begin(self, numbers: list[int], offered: bool, guarded: bool) -> None:
        for who in "abd":
            self.open(who, False, 0)
        if offered:
            self.both.offer(self.session("d"), *_cards(numbers), guarded=guarded)
        for who in "ab":
            self.subscribe(who)

    @rule(
        who=st.sampled_from("aabbcxde"),
        known=st.sampled_from([False, False, True, None]),
        guard_gone_ms=st.sampled_from([0, 0, 60_000]),
        machine=st.sampled_from(["", "machine-1"]),
    )
    def open(self, who: str, known: bool | None, guard_gone_ms: int, machine: str = "") -> None:
        if self.session(who) in self.both.model.tombs:
            self.incarnation[who] += 1
        self.say(
            "open", self.session(who), boot_id=self.boot_of(who), known=known, guard_gone_ms=guard_gone_ms,
            machine=machine,
        )  # fmt: skip

    @rule(who=WHO)
    def subscribe(self, who: str) -> None:
        self.both.subscribe(self.session(who))

    @rule(who=WHO)
    def unsubscribe(self, who: str) -> None:
        self.both.unsubscribe(self.session(who))

    @rule(who=WHO, stale=WHICH)
    def keepalive(self, who: str, stale: int) -> None:
        t = self.ticket(stale)
        wrong = [(t.id, t.token)] if t and stale % 3 == 0 else []
        mine = [t for t in self.both.tickets() if t.session == self.session(who) and t.state in ("held", "member")]
        self.say("keepalive", self.session(who), [(t.id, t.token) for t in mine] + wrong)

    @rule(who=st.sampled_from("abcxdde"), reason=st.sampled_from(["released", "died"]))
    def end_session(self, who: str, reason: EndReason) -> None:
        self.say("end", "", self.session(who), reason=reason, what="session")

    # Tickets and leases

    @rule(
        who=WHO,
        letter=st.sampled_from("mnop"),
        wants=WANTS,
        priority=st.sampled_from([0, 0, 0, 1, -1, 5, 100]),
        wait=st.sampled_from([True, True, True, False]),
        lock_timeout_ms=st.sampled_from([3_600_000, 15_000]),
        inside=st.one_of(st.none(), st.none(), WHICH),
        asked_ago_ms=st.sampled_from([None, 1_000, 299_999, 300_001]),
        back=st.one_of(st.none(), st.none(), st.integers(0, 7)),
    )
    def request(
        self,
        who: str,
        letter: str,
        wants: Wants,
        priority: int,
        wait: bool,
        lock_timeout_ms: int,
        inside: int | None,
        asked_ago_ms: int | None,
        back: int | None,
    ) -> None:
        self.ids += 1
        parked = sorted(self.both.model.parked)
        lease = self.ticket(inside, "held") if inside is not None else None
        self.say(
            "request",
            self.session(who),
            f"{letter}{self.ids}",
            wants,
            priority=priority,
            wait=wait,
            lock_timeout_ms=lock_timeout_ms,
            inside=(lease.id, lease.token + (inside or 0) // 24) if lease else None,
            asked_ms=self.both.model.now - asked_ago_ms if asked_ago_ms is not None else None,
            parked=parked[back % len(parked)] if parked and back is not None else "",
        )

    @rule(which=WHICH)
    def ask_again(self, which: int) -> None:
        """The waiting loop sends its request again."""
        t = self.ticket(which, "waiting", "away", "claim")
        if t is not None:
            timeout_ms = t.lock_timeout_ms
            self.both.request(t.session, t.id, t.wants, priority=t.priority, lock_timeout_ms=timeout_ms)

    @precondition(lambda self: self.said)
    @rule(which=st.integers(0, 255))
    def repeat(self, which: int) -> None:
        """A retry, however late: the same words again."""
        verb, args, words = self.said[-1 - which % len(self.said)]
        getattr(self.both, verb)(*args, **words)

    @rule(which=WHICH, wrong=st.sampled_from([0, 0, 0, 1]))
    def confirm(self, which: int, wrong: int) -> None:
        t = self.ticket(which, "claim") or self.ticket(which)
        if t is not None:
            self.say("confirm", t.session, t.id, t.token + wrong)

    @rule(which=WHICH, reason=st.sampled_from(REASONS), how=st.sampled_from(["own", "own", "any", "stale", "operator"]))
    def end(self, which: int, reason: EndReason, how: str) -> None:
        t = self.ticket(which, "held", "claim", "member") if which % 4 else self.ticket(which)
        if t is not None:
            token = {"own": t.token, "any": None, "stale": t.token - 1, "operator": t.token}[how]
            self.say("end", "" if how == "operator" else t.session, t.id, token, reason)

    @rule(which=WHICH, who=WHO)
    def end_as_another(self, which: int, who: str) -> None:
        t = self.ticket(which)
        if t is not None:
            self.say("end", self.session(who), t.id, t.token)

    @rule(who=WHO, number=st.integers(1, 3))
    def cancel_before_the_request_arrives(self, who: str, number: int) -> None:
        self.say("end", self.session(who), f"m{self.ids + number}", None, "abandoned")

    @rule(which=WHICH, wrong=st.sampled_from([0, 0, 0, 1]))
    def progress(self, which: int, wrong: int) -> None:
        t = self.ticket(which)
        if t is not None:
            self.say("progress", t.session, t.id, t.token + wrong)

    @rule(
        which=WHICH,
        level=st.sampled_from(["warning", "soft", "hard", "silent"]),
        after_ms=st.sampled_from([0, 0, 3_000]),
        stop=st.booleans(),
        manual=st.booleans(),
        wrong=st.sampled_from([0, 0, 0, 1]),
    )
    def reach(self, which: int, level: Reached, after_ms: int, stop: bool, manual: bool, wrong: int) -> None:
        t = self.ticket(which, "held") if which % 4 else self.ticket(which)
        if t is not None:
            self.say("reach", t.id, t.token + wrong, level, after_ms, stop=stop, manual=manual)

    # The daemon

    @rule(numbers=GPUS, complete=st.booleans(), fresh=st.booleans(), boot=st.sampled_from([1, 1, 1, 2, 3]))
    def offer(self, numbers: list[int], complete: bool, fresh: bool, boot: int) -> None:
        """Boot 3 is the same machine as boot 1, started again; boot 2 is another machine."""
        boot_id, machine, gpus = f"boot-{boot}", f"machine-{boot % 2}", _cards(numbers)
        self.both.offer(self.session("d"), *gpus, complete=complete, fresh=fresh, boot_id=boot_id, machine=machine)

    @rule(
        who=st.sampled_from("ddde"),
        numbers=GPUS,
        guarded=st.sampled_from([True, True, False]),
        knows_all=st.booleans(),
        ahead=st.sampled_from([None, -3, 0, 5, 100_000]),
        offerer=st.sampled_from(["one", "one", "two"]),
        policy=POLICIES,
    )
    def offer_as_guard(
        self, who: str, numbers: list[int], guarded: bool, knows_all: bool, ahead: int | None, offerer: str, policy: str
    ) -> None:
        """A daemon with a guard, itself again or a second one; what it says may come late or twice."""
        self.say(
            "offer", self.session(who), *_cards(numbers), guarded=guarded, knows_all=knows_all, offerer=offerer,
            highest_token=0 if ahead is None else max(0, self.both.model.token + ahead),
            terms=msgspec.structs.replace(self.both.terms, settle_policy=policy),
        )  # fmt: skip

    @rule(who=st.sampled_from("dddea"), version=st.integers(0, 6), word=st.sampled_from("xy"))
    def publish(self, who: str, version: int, word: str) -> None:
        """A daemon says something else to the clients; it may be late, or another daemon's."""
        self.both.publish(self.session(who), version, {"say": word})

    @rule(knows_all=st.sampled_from([True, True, False]))
    def guard_comes_back(self, knows_all: bool) -> None:
        """After the store forgot, a guard offers, asserts all that it has let in, and says so."""
        self.open("d", True, 0)
        gpus = _cards([0, 1, 2])
        self.both.offer(self.session("d"), *gpus, guarded=True)
        for who in [who for who in self.from_before if who in "abc"]:
            self.assert_again(who)
        self.both.offer(self.session("d"), *gpus, guarded=True, knows_all=knows_all)

    @rule(
        number=st.integers(0, 3),
        state=st.sampled_from(["ready", "settled", "settled", "quarantined", "drained", "resumed", "lost", "foreign"]),
    )
    def report(self, number: int, state: str) -> None:
        self.say("report", self.session("d"), f"gpu_lock:{number}", state)

    # Time and disasters

    @rule(ms=st.sampled_from([1, 40, 1_000, 2_999, 3_000, 7_000, 20_000, 3_600_000, -1, -3_600_000]))
    def time_moves(self, ms: int) -> None:
        self.both.pass_time(ms)

    @rule(ms=st.sampled_from([5_000, 10_000, 25_000]), keep=st.sampled_from(["abd", "ad", "b", "d"]))
    def time_passes(self, ms: int, keep: Literal["abd", "ad", "b", "d"]) -> None:
        self.both.live_on(ms, [self.session(who) for who in keep])

    @rule()
    def look(self) -> None:
        self.both.look()

    def disaster(self) -> None:
        """What each process still has in its memory when the store forgets."""
        for t in self.both.tickets():
            kept = self.from_before.setdefault(t.session[0], [])
            kept[:] = [other for other in kept if other.id != t.id] + [t]

    @rule()
    def restart_server(self) -> None:
        self.disaster()
        self.both.restart_server()

    @rule(flushed=st.booleans(), uptime_s=st.sampled_from([1_000, 3]))
    def lose_all(self, flushed: bool, uptime_s: int) -> None:
        self.disaster()
        self.both.server.uptime_s = uptime_s
        self.both.lose_all(flushed=flushed)

    @rule()
    def remember(self) -> None:
        self.replica = self.both.remember()

    @precondition(lambda self: self.replica is not None)
    @rule()
    def fail_over(self) -> None:
        assert self.replica is not None
        self.disaster()
        self.both.fail_over(self.replica)

    @rule(who=WHO)
    def assert_again(self, who: str) -> None:
        """A process opens its session anew, with all that it has from before."""
        if self.session(who) in self.both.model.tombs:
            self.incarnation[who] += 1
        has = self.from_before.pop(who, [])
        wait = [t for t in has if t.state in ("waiting", "away", "claim")]
        held = [t for t in has if t.state == "held" and not t.left]
        self.both.open(
            self.session(who),
            boot_id=self.boot_of(who),
            tickets=[BroughtTicket(**_from_before(t)) for t in wait],
            leases=[BroughtLease(**_from_before(t), token=t.token, gpus=t.gpus, age_ms=7) for t in held],
        )


def _cards(numbers: list[int]) -> list[Gpu]:
    return [card(n, MEMORY_GIB[n]) for n in sorted(numbers)]


def _from_before(t: Ticket) -> dict[str, Any]:
    return {
        "id": t.id, "wants": t.wants.text, "priority": t.priority, "stamp": t.stamp, "job": '{"task":"test"}',
        "task": "test", "task_id": "", "lock_timeout_ms": t.lock_timeout_ms,
    }  # fmt: skip


@pytest.mark.timeout(7_200 if DEEP else 600)
def test_every_order_of_calls_gives_what_the_model_gives(server: Server) -> None:
    """One answer that differs is a lock held twice, a place lost or a gpu that stays empty."""
    machine = type("Machine", (ScriptsAgreeWithModel,), {"url": server.url})
    run_state_machine_as_test(machine, settings=PROFILE)
