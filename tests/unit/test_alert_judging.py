"""What becomes of alerts, and what people are told: pure."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulockd.alerting.facts import Seen, of_snapshot, of_window
from gpulockd.alerting.judging import (
    Alert,
    Book,
    Patience,
    Silence,
    Step,
    acknowledged,
    book_after,
    due_in_s,
    judge,
    overall_status,
)
from gpulockd.alerting.messages import MOST_LINES, Notice, message_of, notice_of
from gpulockd.alerting.rules import Rule, rule
from gpulockd.daemon.neighbouring import DaemonMark, around
from gpulockd.ledger.tally import Tally
from gpulockd.model import Gpu, GpuRecord, Snapshot
from gpulockd.units import clean

PATIENCE = Patience(resolve_after_s=60, escalate_after_s=900, keep_s=3600)
HIGH = rule("HIGH", "queue_length > 5", "warning", "too many wait", 10.0)
S = 1000


class Story:
    """A pool over time: what is true at a moment, and what is told of it."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules or (HIGH,)
        self.book = Book()
        self.told: list[tuple[str, str, bool]] = []

    def at(self, now_s: float, **facts: Any) -> tuple[Step, ...]:
        """Judge at a moment."""
        now_ms = round(now_s * S)
        steps = judge("p", self.rules, Seen(values=facts), self.book, now_ms, PATIENCE)
        self.book = book_after(self.book, steps)
        self.told += [(step.tell, step.id, step.told_to_people) for step in steps if step.tell]
        return steps

    @property
    def state(self) -> str | None:
        """The state of the first rule's alert; None: inactive."""
        found = self.book.alerts.get(f"p:{self.rules[0].name}")
        return found.state if found else None


def test_an_alert_waits_for_its_time_and_is_told_once() -> None:
    """What lasts a moment is no alert, and what lasts is one alert."""
    story = Story()
    story.at(0, queue_length=9.0)
    assert story.state == "pending" and not story.told
    story.at(9, queue_length=9.0)
    assert story.state == "pending"
    assert due_in_s(story.book, story.rules, 9 * S, PATIENCE) == 1.0
    story.at(10, queue_length=9.0)
    assert story.state == "active" and story.told == [("raised", "p:HIGH", True)]
    assert story.at(40, queue_length=99.0) == ()


def test_what_is_over_before_its_time_was_never_an_alert() -> None:
    """A pending alert leaves nothing behind."""
    story = Story()
    story.at(0, queue_length=9.0)
    story.at(5, queue_length=1.0)
    story.at(6, queue_length=9.0)
    story.at(15, queue_length=9.0)
    assert story.state == "pending" and not story.told


def test_an_alert_that_flickers_is_one_alert() -> None:
    """A rate around its limit would else fill every mailbox."""
    story = Story()
    for now_s in range(0, 600, 5):
        story.at(now_s, queue_length=9.0 if now_s < 20 or now_s % 10 else 1.0)
    assert story.told == [("raised", "p:HIGH", True)]
    story.at(600, queue_length=1.0)
    story.at(661, queue_length=1.0)
    assert story.state == "resolved" and story.told[-1] == ("resolved", "p:HIGH", True)
    story.at(661 + 3600, queue_length=1.0)
    assert story.state is None


def test_what_is_not_known_changes_nothing() -> None:
    """A store that is away for a minute resolves no alert and raises none."""
    story = Story()
    story.at(0, queue_length=9.0)
    assert story.at(100) == () and story.state == "pending"
    story.at(101, queue_length=9.0)
    assert story.at(1000) == () and story.state == "active"


def test_nobody_reacts_so_it_is_escalated_once_and_is_critical() -> None:
    """An alert that only one person reads is lost when that person sleeps."""
    story = Story()
    story.at(0, queue_length=9.0)
    story.at(10, queue_length=9.0)
    story.at(909, queue_length=9.0)
    assert [kind for kind, *_ in story.told] == ["raised"]
    assert due_in_s(story.book, story.rules, 909 * S, PATIENCE) == 1.0
    for now_s in (910, 2000, 9000):
        story.at(now_s, queue_length=9.0)
    assert [kind for kind, *_ in story.told] == ["raised", "escalated"]
    assert overall_status(story.book.alerts.values()) == "critical"


def test_who_takes_an_alert_on_ends_its_escalation_and_stays_its_owner() -> None:
    """Two people who both believe that the other works on it are none."""
    story = Story()
    story.at(0, queue_length=9.0)
    story.at(10, queue_length=9.0)
    alert = acknowledged(story.book.alerts["p:HIGH"], "ada", "on it", 20 * S)
    assert acknowledged(alert, "bob", "", 30 * S).acknowledged_by == "ada"
    story.book = Book(alerts={alert.id: alert})
    story.at(5000, queue_length=9.0)
    assert [kind for kind, *_ in story.told] == ["raised"]
    assert overall_status(story.book.alerts.values()) == "warning"


def test_a_silence_keeps_an_alert_from_people_until_it_is_over() -> None:
    """It stands in the stream all the same."""
    story = Story()
    story.book = Book(silences=(Silence(rule="*", until_ms=100 * S),))
    story.at(0, queue_length=9.0)
    story.at(10, queue_length=9.0)
    assert story.told == [("raised", "p:HIGH", False)]
    story.at(100, queue_length=9.0)
    assert story.told[1:] == [("raised", "p:HIGH", True)]
    story.at(101, queue_length=9.0)
    assert len(story.told) == 2


def test_what_nobody_was_told_of_is_not_told_as_over() -> None:
    """A message about the end of something unknown only makes people search."""
    story = Story()
    story.book = Book(silences=(Silence(rule="HIGH", pool="p", until_ms=10_000 * S),))
    for now_s, length in ((0, 9.0), (10, 9.0), (20, 1.0), (90, 1.0)):
        story.at(now_s, queue_length=length)
    assert story.told == [("raised", "p:HIGH", False), ("resolved", "p:HIGH", False)]


def test_the_alert_of_a_rule_that_is_gone_is_over() -> None:
    """Nobody could end it otherwise."""
    story = Story()
    story.at(0, queue_length=9.0)
    story.at(10, queue_length=9.0)
    story.rules = (rule("OTHER", "queue_length > 100", "warning", "m"),)
    story.at(11, queue_length=9.0)
    assert story.told[-1] == ("resolved", "p:HIGH", True)


@given(st.lists(st.tuples(st.integers(1, 400), st.sampled_from([9.0, 1.0, None])), max_size=40))
def test_whatever_happens_each_raise_is_told_once_and_ended_once(days: list[tuple[int, float | None]]) -> None:
    """The machine of states is small, and its cases are many."""
    story, now_s = Story(), 0
    for pause_s, length in days:
        now_s += pause_s
        story.at(now_s, queue_length=length)
    kinds = [kind for kind, *_ in story.told if kind != "escalated"]
    assert kinds == ["raised", "resolved"] * (len(kinds) // 2) + ["raised"] * (len(kinds) % 2)
    assert [kind for kind, *_ in story.told].count("escalated") <= kinds.count("raised")
    for alert in story.book.alerts.values():
        assert msgspec.json.decode(msgspec.json.encode(alert), type=Alert) == alert


def window(acquired: int, timed_out: int, missed: int = 0) -> Tally:
    """A window with these counts."""
    return Tally(counts={"acquired": acquired, "timed_out": timed_out, "heartbeat_missed": missed})


def test_a_rate_of_few_says_nothing() -> None:
    """One of two requests that waited too long at night is no 50 % worth a call."""
    few = of_window(window(10, 9), "", 0, 0, 20)
    assert few["timeout_rate"] == 0.0 and few["success_rate"] == 1.0 and few["attempts"] == 19.0
    enough = of_window(window(10, 10), "", 0, 0, 20)
    assert enough["timeout_rate"] == 0.5 and enough["success_rate"] == 0.5


def test_heartbeats_are_counted_over_all_tasks_that_held_not_only_over_those_that_began() -> None:
    """On a machine with long tasks nobody begins in the window."""
    facts = of_window(window(0, 0, missed=3), "", 0, held_now=30, least_samples=20)
    assert facts["heartbeat_failure_rate"] == pytest.approx(0.1)
    assert of_window(window(0, 0, missed=3), "", 0, held_now=2, least_samples=20)["heartbeat_failure_rate"] == 0.0


def notice(n: int, **more: Any) -> Notice:
    """Some notice."""
    facts = {"kind": "raised", "level": "warning", "rule": f"R{n}", "pool": "p", "message": "m"} | more
    return Notice(id=f"n{n}", at_ms=n, **facts)


def test_a_message_of_a_thousand_is_short_and_begins_with_the_worst() -> None:
    """The one that matters must not be the thousandth line."""
    many = [notice(n) for n in range(999)] + [notice(999, level="critical", rule="WORST")]
    message = message_of(many)
    assert message.subject == "[gpulockd] critical: WORST in p and 999 more"
    lines = message.text.splitlines()
    assert len(lines) == MOST_LINES + 1 and lines[0].startswith("CRITICAL WORST") and "980 more" in lines[-1]
    assert len(msgspec.json.encode(message.payload())) < 60_000


def test_the_same_rule_in_many_pools_is_one_line() -> None:
    """A store that is slow makes the same alert everywhere."""
    text = message_of([notice(n, rule="SAME", pool=f"p{n}") for n in range(50)]).text
    assert len(text.splitlines()) == 1 and "and 42 more" in text


def test_a_message_has_the_same_id_whenever_the_same_is_told() -> None:
    """The receiver of a second copy can leave it out."""
    one, other = notice(1), notice(2)
    assert message_of([one, other]).delivery == message_of([other, one]).delivery
    alert = Alert(pool="p", rule="R", level="warning", message="m", state="active", since_ms=1, raised_ms=2, times=1)
    assert notice_of(alert, "raised", 5).id == notice_of(alert, "raised", 99).id != notice_of(alert, "resolved", 5).id


@given(st.text(max_size=300))
def test_no_name_breaks_a_line_or_hides_what_follows(text: str) -> None:
    """Names come from programs; a subject with a line break is a header of the attacker's choice."""
    message = message_of([notice(1, message=text, pool="p", detail=text)])
    assert "\n" not in message.subject and message.text.count("\n") == 1
    assert not any(c < " " or c in "\x7f\u2028\u202e\u200b" for c in clean(text))


def test_every_daemon_is_watched_by_three_and_none_watches_itself() -> None:
    """Two that die together must still be seen by a third."""
    marks = {f"p{n}": DaemonMark(session="s", stopped=n == 4) for n in range(8)}
    watched = {own: [pool for pool, _ in around(own, marks)][:3] for own in marks if own != "p4"}
    for pool in watched:
        assert sum(pool in others for others in watched.values()) == 3 and pool not in watched[pool]
    assert all("p4" not in others for others in watched.values())


def test_what_is_lost_or_set_apart_is_named() -> None:
    """Who is called must know which card."""

    def record(index: int, state: Any) -> GpuRecord:
        gpu = Gpu(key=f"gpu_lock:{index}", index=index, uuid=f"u{index}", name="n", memory_mib=1)
        return GpuRecord(gpu=gpu, state=state, offered=True, exclusive=None, shared=0, used_mib=0)

    base: dict[str, Any] = {"pool": "p", "epoch": "e", "at_ms": 0, "token": 0, "offered": True, "guarded": True}
    base |= {"boot_id": "", "host": "", "frozen_ms": 0, "frozen_why": "", "leases": (), "queue": (), "queued": 0}
    base |= {"sessions": 0, "next_due_ms": None, "counters": {}}
    snapshot = Snapshot(gpus=(record(0, "ready"), record(1, "quarantined"), record(2, "lost")), **base)
    values, about = of_snapshot(snapshot)
    assert values["gpus_quarantined"] == 1.0 and values["gpus_lost"] == 1.0 and values["gpus"] == 3.0
    assert about["gpus_quarantined"] == "quarantined: GPU 1"
