"""What the page says of a pool: pure, from snapshots, events and readings."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpulockd.config.impact import Impact, Summary
from gpulockd.config.sides import Side
from gpulockd.events import (
    AlertRaised,
    Event,
    LockAcquired,
    LockExpired,
    LockReleased,
    TimeoutWarned,
    WaitAbandoned,
)
from gpulockd.ledger.distribution import Distribution
from gpulockd.ledger.forecast import Holds
from gpulockd.ledger.tally import Tally
from gpulockd.model import Gpu, GpuRecord, GpuState, Job, Process, Snapshot, TicketRecord, Wants
from gpulockd.settings.alerting import RULES
from gpulockd.web.page import cards, changes, performance, queue, sparks, status, timeline, waits, words

NOW_MS = 1_800_000_000_000
LIMITS = (300.0, 600.0, 900.0)


class Reading(msgspec.Struct):
    """One sample of a card."""

    at_ms: int
    used_mib: int | None = None
    total_mib: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


def gpu(index: int, state: GpuState = "ready") -> GpuRecord:
    """A card of 16 GiB."""
    made = Gpu(key=f"gpu_lock:{index}", index=index, uuid=f"GPU-{index}", name="Card", memory_mib=16384)
    return GpuRecord(gpu=made, state=state, offered=True, exclusive=None, shared=0, used_mib=0)


def ticket(task: str, wants: Wants | None = None, **more: Any) -> TicketRecord:
    """A place in the queue, or with a token a lease."""
    given: dict[str, Any] = {"id": f"id-{task}", "state": "waiting", "session": "s", "priority": 0, "waited_ms": 0}
    process = Process(pid=7, host="ws1", boot_id="b", user="ann", program="/usr/bin/python3 job.py")
    return TicketRecord(
        **(given | {"wants": (wants or Wants()).text, "job": Job(task=task), "process": process} | more)
    )


def lease(task: str, keys: tuple[str, ...], held_s: float, **more: Any) -> TicketRecord:
    """A lease on these gpus."""
    return ticket(task, state="held", gpus=keys, held_ms=round(held_s * 1000), token=5, **more)


def pool(
    gpus: tuple[GpuRecord, ...], leases: tuple[TicketRecord, ...] = (), waiting: tuple[TicketRecord, ...] = ()
) -> Snapshot:
    """A pool at `NOW_MS`."""
    placed = tuple(msgspec.structs.replace(one, place=n + 1) for n, one in enumerate(waiting))
    return Snapshot(
        pool="p",
        epoch="e",
        at_ms=NOW_MS,
        token=5,
        offered=True,
        guarded=True,
        boot_id="b",
        host="ws1",
        frozen_ms=0,
        frozen_why="",
        gpus=gpus,
        leases=leases,
        queue=placed,
        queued=len(placed),
        sessions=1,
        next_due_ms=None,
        counters={},
    )


def times(holds: Holds | None = None, ends_ms: dict[str, int] | None = None) -> cards.Times:
    """What tells when holds end."""
    return cards.Times(holds=holds or {}, limits=lambda _job: LIMITS, now_ms=NOW_MS, ends_ms=ends_ms or {})


def holder_of(held_s: float, **more: Any) -> cards.Holder:
    """What the card of GPU 0 says of its holder."""
    snapshot = pool((gpu(0),), (lease("ocr", ("gpu_lock:0",), held_s, **more),))
    (card,) = cards.cards(snapshot, {}, times())
    return card.holders[0]


@pytest.mark.parametrize(
    ("held_s", "mood", "text", "left_s"),
    [
        (10, "good", "warning in", 290),
        (300, "warn", "past its warning (5 m), soft stop in", 300),
        (700, "bad", "past its soft limit (10 m), hard stop in", 200),
        (901, "bad", "past its hard limit (15 m): being ended", None),
    ],
)
def test_an_age_is_told_against_its_limits(held_s: float, mood: str, text: str, left_s: float | None) -> None:
    """Who looks at a card asks how long it still goes."""
    found = holder_of(held_s)
    assert (found.mood, found.limit, found.left_s) == (mood, text, left_s)
    assert found.bar == min(100.0, round(held_s / 9, 2))
    assert [(mark.name, mark.text) for mark in found.marks] == [("warn", "5 m"), ("soft", "10 m"), ("hard", "15 m")]


def test_a_silent_task_is_worse_than_its_age() -> None:
    """Its age alone looks well."""
    assert holder_of(10, missed_age_ms=1000, heartbeat_age_ms=9000).mood == "warn"
    assert holder_of(400, missed_age_ms=1000).mood == "bad"


def test_a_holder_is_named_with_its_process_and_what_it_shares() -> None:
    """Somebody must be able to find it with ps, and to say whose it is."""
    found = holder_of(1, wants=Wants(memory_mib=8192, exclusive=False), percent=64.4, note="page 3")
    assert found.who == "python3@ws1 pid 7 · user ann"
    assert (found.memory, found.percent, found.note) == ("8 GiB of it", 64.4, "page 3")


def test_the_end_is_foretold_from_holds_of_the_same_task_or_not_at_all() -> None:
    """A guess without grounds is worse than none."""
    snapshot = pool((gpu(0),), (lease("ocr", ("gpu_lock:0",), 10),))
    for holds, known in (({"ocr": (60_000, 70_000, 80_000)}, True), ({"other": (1, 2, 3)}, False)):
        (card,) = cards.cards(snapshot, {}, times(holds))
        assert card.holders[0].ends.startswith("ends ≈") is known


def test_an_end_that_is_not_known_says_what_it_takes() -> None:
    """ "Not known" alone looks like a fault."""
    snapshot = pool((gpu(0),), (lease("ocr", ("gpu_lock:0",), 10),))

    def ends(told: cards.Times) -> str:
        return cards.cards(snapshot, {}, told)[0].holders[0].ends

    assert ends(times()) == "end not known before 3 finished holds of this task (0 so far)"
    assert ends(times({"ocr": (1, 2, 3)})) == "end not known: it lasts longer than any before"
    assert ends(times(ends_ms={"id-ocr": 60_000})) == f"its time ends {words.clock(NOW_MS + 60_000)}"
    line = queue.line(pool((gpu(0),), waiting=(ticket("a"),)), {}, NOW_MS, 60.0)
    assert line.places[0].starts == "" and "3 finished holds" in line.unknown


@pytest.mark.parametrize(
    ("state", "word", "steering"),
    [
        ("ready", "free", "drain"),
        ("drained", "drained", "resume"),
        ("settling", "settling", ""),
        ("lost", "lost", "resume"),
    ],
)
def test_a_card_offers_what_can_be_done_with_it(state: GpuState, word: str, steering: str) -> None:
    """A button that can only fail is a trap."""
    (card,) = cards.cards(pool((gpu(0, state),)), {}, times())
    assert (card.state, card.steering) == (word, steering)
    assert card.glyph in "●▲■○"


def test_readings_become_four_tiles_with_their_lines() -> None:
    """Memory, utilisation, temperature and power; what a card does not tell is left out, not zero."""
    readings = [
        Reading(NOW_MS + n * 5000, used_mib=4096 * n, total_mib=16384, utilization=n / 4, power_w=100.0)
        for n in range(5)
    ]
    (card,) = cards.cards(pool((gpu(0),)), {"GPU-0": readings}, times())
    assert [(tile.name, tile.now) for tile in card.tiles] == [
        ("memory", "100 %"),
        ("utilisation", "100 %"),
        ("temperature", "–"),
        ("power", "100 W"),
    ]
    assert [len(tile.lines) for tile in card.tiles] == [1, 1, 0, 1]


def test_a_gap_in_a_line_stays_a_gap() -> None:
    """A line drawn over a gap tells of what nobody has seen."""
    assert sparks.line([0.0, 1.0, None, 1.0, 0.0], 1.0) == ("0.0,23.0 25.0,1.0", "75.0,1.0 100.0,23.0")
    assert sparks.line([1.0], 1.0) == () and sparks.line([1.0, 1.0], 0.0) == ()


def test_the_queue_says_why_not_now() -> None:
    """A place alone does not tell whether something is wrong."""
    both = ("gpu_lock:0",)
    waiting = (
        ticket("a", Wants(keys=both), waited_ms=120_000, priority=5),
        ticket("b", Wants(keys=both)),
        ticket("c", chosen=("gpu_lock:1",)),
        ticket("d", state="away"),
    )
    snapshot = pool((gpu(0), gpu(1, "drained")), (lease("ocr", both, 61),), waiting)
    found = queue.line(snapshot, {}, NOW_MS, 60.0)
    assert ["; ".join(map(str, place.why)) for place in found.places] == [
        "GPU 0 held by ocr for 1:01",
        "behind 1 that want the same; GPU 0 held by ocr for 1:01",
        "GPU 1 kept free for it",
        "its program does not answer; it keeps its place",
    ]
    assert (found.places[0].priority, found.places[0].aged, found.places[1].aged) == ("5", "7", "")
    assert found.held_back == "GPU 1 kept free for c"


def event(kind: type[Event], ago_s: float, **more: Any) -> Event:
    """An event so long ago."""
    return kind(seq=1, at_ms=round(NOW_MS - ago_s * 1000), pool="p", task="ocr", **more)


def test_the_timeline_has_each_hold_and_wait_at_its_time() -> None:
    """A person sees who was before whom."""
    key = ("gpu_lock:0",)
    events = [
        event(LockReleased, 300, gpus=key, held_ms=60_000),
        event(LockExpired, 200, gpus=key, held_ms=30_000, reason="lost"),
        event(LockAcquired, 150, gpus=key, waited_ms=50_000),
        event(WaitAbandoned, 100, waited_ms=10_000, reason="abandoned"),
    ]
    found = timeline.timeline(pool((gpu(0),), (lease("now", key, 150),)), events, NOW_MS)
    assert found.span_min == 10
    first, alone = found.rows
    assert [(bar.x, bar.width, bar.lost) for bar in first.bars] == [
        (40.0, 10.0, False),
        (61.667, 5.0, True),
        (75.0, 25.0, False),
    ]
    assert [(wait.x, wait.width, wait.over) for wait in first.waits] == [(66.667, 8.333, False)]
    assert (alone.name, [wait.over for wait in alone.waits]) == ("any GPU", [True])
    assert {one.end for one in found.listed} == {"released", "lost", "granted", "abandoned", "held still"}


def test_a_timeline_that_would_be_too_full_shows_less_time() -> None:
    """Bars that were left out would look like idle time."""
    key = ("gpu_lock:0",)
    many = [event(LockReleased, 3000 - n * 5, gpus=key, held_ms=4000) for n in range(600)]
    found = timeline.timeline(pool((gpu(0),)), many, NOW_MS)
    assert found.span_min == 20 and found.holds <= timeline.MOST_HOLDS
    assert timeline.timeline(pool((gpu(0),)), many[:200], NOW_MS).span_min == 60
    known = timeline.timeline(pool((gpu(0),)), many[:20], NOW_MS, reach_ms=NOW_MS - 700_000)
    assert known.span_min == 10


@pytest.mark.parametrize(("oldest_min", "shown"), [(1, 2), (9, 10), (11, 20), (25, 30), (45, 60), (90, 60)])
def test_the_timeline_shows_as_much_time_as_there_is_to_see(oldest_min: int, shown: int) -> None:
    """Bars in a sixth of the width cannot be read."""
    key = ("gpu_lock:0",)
    one = event(LockReleased, oldest_min * 60 - 30, gpus=key, held_ms=30_000)
    found = timeline.timeline(pool((gpu(0),)), [one], NOW_MS)
    assert (found.span_min, found.chosen) == (shown, False)


def test_the_reader_chooses_how_much_time_is_shown_and_is_told_what_is_missing() -> None:
    """An empty stretch of which nothing is known would look like rest."""
    key = ("gpu_lock:0",)
    many = [event(LockReleased, 600 - n, gpus=key, held_ms=900) for n in range(400)]
    found = timeline.timeline(pool((gpu(0),)), many, NOW_MS, reach_ms=NOW_MS - 700_000, span_min=60)
    assert (found.span_min, found.chosen, found.since_ms) == (60, True, NOW_MS - 700_000)
    assert found.left_out == 400 - timeline.MOST_HOLDS


def test_who_waits_for_any_gpu_is_named_beside_the_lines() -> None:
    """A name that stands over its lines belongs to the row above."""
    found = timeline.timeline(pool((gpu(0),), waiting=(ticket("a", waited_ms=5000),)), (), NOW_MS)
    row = found.rows[-1]
    assert row.name == "any GPU" and 0 <= row.name_y - (row.y + timeline.BAR_H + 4) <= timeline.LANES * timeline.LANE_H


def test_who_shares_a_card_is_seen_beside_who_was_first() -> None:
    """Two bars on each other would be one."""
    key = ("gpu_lock:0",)
    snapshot = pool((gpu(0),), (lease("first", key, 60), lease("second", key, 30)))
    first, second = timeline.timeline(snapshot, (), NOW_MS).rows[0].bars
    assert first.height > second.height


def test_every_wait_is_in_one_step_of_the_histogram() -> None:
    """A histogram that loses some flatters."""
    found = waits.waits(Distribution.of([0, 50, 250, 2_000, 2_500, 59_000, 10_000_000]))
    assert sum(step.count for step in found.steps) == found.count == 7
    assert [step.count for step in found.steps if step.count] == [2, 1, 2, 1, 1]
    assert found.steps[-1].count == 1 and found.steps[-1].name == "> 15 m"
    assert waits.waits(Distribution()).p95 == ""


def test_a_card_that_is_held_and_idle_is_told_of() -> None:
    """That is the time that others wait for."""
    key = ("gpu_lock:0",)
    readings = [Reading(NOW_MS - n * 5000, used_mib=100, total_mib=16384, utilization=0.0) for n in range(10, 0, -1)]
    snapshot = pool((gpu(0), gpu(1)), (lease("ocr", key, 120),))
    events = [event(LockAcquired, 120, gpus=key, waited_ms=90_000)]
    found = performance.performance(snapshot, events, {"GPU-0": readings, "GPU-1": readings}, Tally(), {})
    assert [(card.name, card.idle) for card in found.cards] == [("GPU 0", 1.0)]
    assert "GPU 0 was idle for 100 %" in found.advice[0]
    assert [(one.job, one.waited) for one in found.waits] == [("ocr", "1:30")]
    nothing = performance.performance(pool((gpu(0),)), (), {"GPU-0": readings}, Tally(), {})
    assert nothing.advice == ("Nothing stands out.",)


def test_idle_time_is_counted_while_the_card_was_held_only() -> None:
    """A card that was held twice for a minute within an hour was not held for an hour."""
    key = ("gpu_lock:0",)
    ended = [event(LockReleased, 3000, gpus=key, held_ms=60_000), event(LockReleased, 100, gpus=key, held_ms=60_000)]
    shared = event(LockReleased, 100, gpus=key, held_ms=30_000)
    readings = [Reading(NOW_MS - n * 5000, utilization=0.0) for n in range(720, 0, -1)]
    (card,) = performance.idle_cards(pool((gpu(0),)), [*ended, shared], {"GPU-0": readings})
    assert card.held == "2:00"


def test_timeouts_and_unusable_cards_come_with_advice() -> None:
    """A figure without a cure is half the work."""
    window = Tally(counts={"acquired": 15, "timed_out": 5})
    snapshot = pool((gpu(0, "quarantined"),), waiting=(ticket("a"),))
    advice = performance.performance(snapshot, (), {}, window, {}).advice
    assert any("timed out" in said and "max_wait_time" in said for said in advice)
    assert any("GPU 0" in said and "resume" in said for said in advice)


def test_nobody_is_told_to_resume_a_card_that_no_waiting_request_could_use() -> None:
    """It would change nothing for those who wait."""
    for wants, is_told in (("exclusive:1:0:gpu_lock:0", False), ("exclusive:2:0:gpu_lock:0,gpu_lock:1", True)):
        waiting = (msgspec.structs.replace(ticket("a"), wants=wants),)
        snapshot = pool((gpu(0), gpu(1, "drained")), waiting=waiting)
        advice = performance.performance(snapshot, (), {}, Tally(), {}).advice
        assert any("GPU 1" in said for said in advice) is is_told


def test_the_head_tells_running_idle_and_stalled_apart() -> None:
    """An empty screen may mean rest or ruin."""

    def told(snapshot: Snapshot | None, reasons: tuple[str, ...] = ()) -> str:
        return status.status(snapshot, reasons, 0.001, ()).state.text

    assert told(pool((gpu(0),))) == "idle"
    assert told(pool((gpu(0),), (lease("ocr", ("gpu_lock:0",), 1),))) == "running"
    assert told(pool((gpu(0, "drained"),), waiting=(ticket("a"),))) == "stalled: GPU 0 cannot be used"
    assert told(pool((gpu(0),)), ("no GPU is offered",)) == "stalled"
    assert told(None) == "stalled"
    assert status.status(None, (), 0.0, ()).troubles


def test_nothing_is_better_or_worse_where_too_little_was_measured() -> None:
    """A red arrow beside "too few attempts" sends somebody to roll back for nothing."""
    found = changes.figures(Impact(impact_summary=Summary(busy_share_change="90% ↓"), revision=4))
    assert {(one.change, one.mood) for one in found} == {("–", "")}


def test_less_waiting_is_better_and_less_success_is_worse() -> None:
    """An arrow alone does not say whether to roll back."""
    said = Summary(wait_p95_change="40% ↓", success_rate_change="3% ↓", holds_per_hour_change="0%", enough_samples=True)
    before, after = Side(wait_p95=118.0), Side(wait_p95=71.0)
    found = changes.figures(Impact(before=before, after=after, impact_summary=said, revision=4))
    moods = {one.name: (one.before, one.after, one.mood) for one in found}
    assert moods["wait p95"] == ("1:58", "1:11", "good")
    assert moods["success"][2] == "bad" and moods["holds/h"][2] == ""


def test_events_are_told_in_words_with_a_mood() -> None:
    """A person reads them, not a program."""
    key = ("gpu_lock:1",)
    assert words.told(event(LockAcquired, 0, gpus=key, waited_ms=127_000)) == (
        "granted",
        "good",
        "GPU 1 → ocr after 2:07",
    )
    assert (
        words.told(event(LockExpired, 0, gpus=key, held_ms=5000, reason="session_lost"))[2]
        == "GPU 1 ocr (5.0 s): session lost"
    )
    assert words.told(event(TimeoutWarned, 0, gpus=key, held_ms=300_000, reason="warning"))[2] == "GPU 1 ocr (5:00)"
    assert words.told(event(AlertRaised, 0, rule="R", level="warning", message="m", reason="r")) == (
        "alert",
        "warn",
        "R · m",
    )
    assert words.told(event(AlertRaised, 0, rule="R", level="critical"))[1] == "bad"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.04, "0.04 s"), (1.86, "1.8 s"), (59.9, "59 s"), (61, "1:01"), (3661, "1:01:01"), (1e5, "1 d 03 h")],
)
def test_all_that_is_measured_is_written_in_one_form(seconds: float, text: str) -> None:
    """Two forms side by side cannot be compared at a glance; the browser counts on in the same one."""
    assert words.age(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (5, "5 s"), (60, "1 m"), (90, "1:30"), (7200, "2 h")])
def test_a_setting_is_written_as_people_set_it(seconds: float, text: str) -> None:
    """A limit of two hours is not a clock."""
    assert words.short(seconds) == text


def test_an_alert_is_called_by_something_that_everybody_can_read() -> None:
    """Not every operator reads Chinese, and those who do keep their phrase."""
    for rule in RULES:
        title, beside = words.alert_title(rule.name, rule.message)
        assert title.isascii() and title != rule.name and beside == rule.message
    assert words.alert_title("MINE", "the queue is long") == ("the queue is long", "")
    assert words.alert_title("MINE", "队列过长") == ("MINE", "队列过长")
    assert words.alert_title("MINE", "") == ("MINE", "")


def test_a_long_value_is_folded_and_a_huge_one_cut() -> None:
    """One list of alert rules would bury the page."""
    assert changes.value_of(5.0) == changes.Text("5")
    rules = [{"name": f"RULE_{n}", "condition": "queue_length > 5"} for n in range(190)]
    found = changes.value_of(rules)
    assert found.summary == "190 entries" and len(found.text) == changes.MOST_TEXT and found.left > 0
    text = changes.value_of("x" * 200)
    assert (text.text, text.left) == ("x" * 200, 0) and len(text.summary) < 80
