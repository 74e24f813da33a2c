"""What is judged about leases that are old or silent: pure, so every case can be had without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulockd.daemon import judging
from gpulockd.daemon.heartbeats import Tasks, heartbeat_record, orphans, tasks_of
from gpulockd.daemon.judging import Bury, GiveUp, Instruction, Mark, Miss, Press, Reading, Readings, Recovery, Revoke
from gpulockd.daemon.levels import RANK, Level, Rules, limits_of, reached
from gpulockd.daemon.monitor import findings_of
from gpulockd.daemon.sampling import any_busy, cpu_ticks_of
from gpulockd.daemon.usage import Sample, Watched, reading_of, watched
from gpulockd.hardware.processes.identity import Process, Stat
from gpulockd.model import Gpu, GpuRecord, GpuState, Job, Snapshot, TicketRecord
from gpulockd.settings import CleanupBlock, HeartbeatBlock, MonitorBlock, TaskBlock, TimeoutLevels

MINUTE_MS = 60_000
RULES = Rules()
NOW_S = 1000.0

Mode = Literal["automatic", "manual"]


def rules(**monitor: object) -> Rules:
    """The defaults with some of the monitor's settings changed."""
    return Rules(monitor=msgspec.structs.replace(MonitorBlock(), **monitor))


def lease(
    held_min: float = 0.0,
    *,
    job: Job | None = None,
    level: Literal["", "warning", "soft", "hard"] = "",
    seen_ms: int | None = 0,
    beat_ms: int | None = None,
    missed_ms: int | None = None,
    heartbeat: Mode = "automatic",
    id: str = "l",
    state: Literal["held", "claim", "member"] = "held",
    of: str | None = None,
) -> TicketRecord:
    """A lease on GPU 0 that has been held for so many minutes."""
    return TicketRecord(
        id=id,
        state=state,
        session="s",
        wants="exclusive:1:0:any",
        priority=0,
        job=job or Job(task="whisper", heartbeat=heartbeat),
        process=None,
        waited_ms=0,
        gpus=("gpu_lock:0",),
        token=7,
        held_ms=round(held_min * MINUTE_MS),
        heartbeat_age_ms=beat_ms,
        level=level,
        seen_age_ms=seen_ms,
        missed_age_ms=missed_ms,
        of=of,
    )


def picture(*leases: TicketRecord, gpu_state: GpuState = "ready", frozen_ms: int = 0) -> Snapshot:
    """A pool with one gpu and these leases."""
    return Snapshot(
        pool="p",
        epoch="e",
        at_ms=0,
        token=7,
        offered=True,
        guarded=False,
        boot_id="b",
        host="h",
        frozen_ms=frozen_ms,
        frozen_why="",
        gpus=(
            GpuRecord(
                gpu=Gpu(key="gpu_lock:0", index=0), state=gpu_state, offered=True, exclusive=None, shared=0, used_mib=0
            ),
        ),
        leases=leases,
        queue=(),
        queued=0,
        sessions=1,
        next_due_ms=None,
        counters={},
    )


def judged(*leases: TicketRecord, by: Rules = RULES, runs: dict[str, Reading] | None = None) -> list[Instruction]:
    """What must be done about these leases."""
    return list(judging.judge(picture(*leases), Readings(runs=runs or {}), by, NOW_S))


def levels_of(orders: Sequence[Instruction]) -> list[str]:
    """The levels that instructions act on; taking a lease for its age is the hard one."""
    return [
        order.level if isinstance(order, Mark) else "hard"
        for order in orders
        if isinstance(order, Mark) or (isinstance(order, Revoke) and order.why == "hard_timeout")
    ]


# Levels.


@pytest.mark.parametrize(
    ("held_min", "level"),
    [(0, []), (29.9, []), (30, ["warning"]), (59.9, ["warning"]), (60, ["soft"]), (119.9, ["soft"]), (120, ["hard"])],
)
def test_the_highest_level_that_was_reached_acts_and_no_other(held_min: float, level: list[str]) -> None:
    """A daemon that was away for an hour must not warn of what it then stops."""
    assert levels_of(judged(lease(held_min))) == level


@pytest.mark.parametrize(("held_min", "level"), [(30, "warning"), (119, "warning"), (60, "soft"), (90, "soft")])
def test_a_level_that_was_acted_on_does_not_act_again(held_min: float, level: Level) -> None:
    """Once per lease: the ledger remembers it, over restarts of the daemon too."""
    again = levels_of(judged(lease(held_min, level=level)))
    assert level not in again
    assert all(RANK[name] > RANK[level] for name in again)


def test_a_level_that_only_this_daemon_remembers_does_not_act_again() -> None:
    """A store that lost its data has forgotten the levels, its holders are still the same."""
    known = Readings(levels={"l": "soft"})
    assert not judging.judge(picture(lease(70)), known, RULES, NOW_S)


def test_soft_asks_the_holder_to_stop_and_warning_does_not() -> None:
    """A warning is for people."""
    assert [order.stop for order in judged(lease(30)) if isinstance(order, Mark)] == [False]
    assert [order.stop for order in judged(lease(60)) if isinstance(order, Mark)] == [True]


def test_without_auto_recovery_every_level_is_told_and_nobody_is_stopped() -> None:
    """Detect and alert only."""
    watching = rules(auto_recovery=False)
    for held_min, level in ((60, "soft"), (120, "hard")):
        (order,) = judged(lease(held_min), by=watching)
        assert isinstance(order, Mark)
        assert (order.level, order.stop) == (level, False)
    silent = lease(1, heartbeat="manual", beat_ms=400_000)
    assert [type(order) for order in judged(silent, by=watching)] == [Miss]
    assert not judging.reminders(picture(lease(70, level="soft")), Readings(), watching)
    assert not judged(lease(1), by=watching, runs={"l": Reading(gone=True)})


def test_disabled_means_no_levels_and_no_recovery() -> None:
    """`enabled: false` leaves hand-off and guard alone to work."""
    off = rules(enabled=False)
    assert not judged(lease(500), lease(1, id="m", heartbeat="manual", beat_ms=900_000), by=off)
    assert judging.next_look_s(picture(lease(1)), Readings(), off, NOW_S) == float("inf")


def test_while_the_pool_is_frozen_nothing_is_judged() -> None:
    """Its leases are still being brought back."""
    frozen = picture(lease(500), frozen_ms=4000)
    assert not judging.judge(frozen, Readings(), RULES, NOW_S)
    assert judging.next_look_s(frozen, Readings(), RULES, NOW_S) == 4.0


def test_claims_and_members_have_no_levels_of_their_own() -> None:
    """A claim has not begun, and a member's age is its lease's."""
    assert not judged(lease(500, state="claim"), lease(500, id="m", state="member", of="l"))


def test_a_job_names_its_own_limits() -> None:
    """Limits per lease."""
    job = Job(task="t", warning_s=60, soft_timeout_s=120, hard_timeout_s=180)
    assert [levels_of(judged(lease(minute, job=job))) for minute in (0.9, 1, 2, 3)] == [
        [],
        ["warning"],
        ["soft"],
        ["hard"],
    ]


def test_a_task_has_its_own_limits_and_the_job_goes_before_them() -> None:
    """Limits per task in the configuration."""
    of_task = Rules(tasks={"whisper": TaskBlock(hard_timeout=240.0)})
    assert limits_of(Job(task="whisper"), of_task).hard_ms == 240_000
    assert limits_of(Job(task="ocr"), of_task).hard_ms == 120 * MINUTE_MS
    assert limits_of(Job(task="whisper", hard_timeout_s=60), of_task).hard_ms == 60_000


def test_who_asks_for_more_time_is_not_stopped_by_the_limits_left_out() -> None:
    """`--timeout 24h` must not end at the configured soft limit of one hour, nor `--timeout none` ever."""
    day = limits_of(Job(task="t", hard_timeout_s=24 * 3600), RULES)
    assert (day.warning_ms, day.soft_ms, day.hard_ms) == (6 * 60 * MINUTE_MS, 12 * 60 * MINUTE_MS, 24 * 60 * MINUTE_MS)
    assert not judged(lease(365 * 24 * 60, job=Job(task="t", hard_timeout_s=1e9)))
    usual = limits_of(Job(task="t", hard_timeout_s=7200), RULES)
    assert (usual.warning_ms, usual.soft_ms) == (30 * MINUTE_MS, 60 * MINUTE_MS)
    assert limits_of(Job(task="t", warning_s=36000), RULES).hard_ms == 120 * MINUTE_MS


positive_s = st.floats(min_value=0.05, max_value=1e6)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Jobs with any of their limits given, in order."""
    given_s = sorted(draw(st.lists(positive_s, min_size=3, max_size=3)))
    warning_s, soft_s, hard_s = (value if draw(st.booleans()) else None for value in given_s)
    mode: Mode = draw(st.sampled_from(["automatic", "manual"]))
    return Job(task="t", warning_s=warning_s, soft_timeout_s=soft_s, hard_timeout_s=hard_s, heartbeat=mode)


@st.composite
def rule_sets(draw: st.DrawFn) -> Rules:
    """Any rules."""
    warning, soft, hard = sorted(draw(st.lists(positive_s, min_size=3, max_size=3)))
    return Rules(
        monitor=MonitorBlock(
            timeout_levels=TimeoutLevels(warning=warning, soft_timeout=soft, hard_timeout=hard),
            heartbeat=HeartbeatBlock(timeout=draw(positive_s)),
            cleanup=CleanupBlock(retry_delay=draw(st.floats(0, 100)), max_retry=draw(st.integers(0, 5))),
            enabled=draw(st.booleans()),
            auto_recovery=draw(st.booleans()),
        )
    )


ages_ms = st.one_of(st.none(), st.integers(0, 10**9))


@st.composite
def leases(draw: st.DrawFn) -> TicketRecord:
    """Any lease that is held."""
    return lease(
        draw(st.integers(0, 10**9)) / MINUTE_MS,
        job=draw(jobs()),
        level=draw(st.sampled_from(["", "warning", "soft", "hard"])),
        seen_ms=draw(ages_ms),
        beat_ms=draw(ages_ms),
        missed_ms=draw(ages_ms),
    )


@given(jobs(), rule_sets())
def test_limits_are_always_in_order(job: Job, by: Rules) -> None:
    """Whatever is configured and asked for, a warning comes before the end."""
    found = limits_of(job, by)
    assert found.warning_ms <= found.soft_ms <= found.hard_ms


@given(jobs(), rule_sets(), st.integers(0, 10**9), st.integers(0, 10**9))
def test_levels_grow_with_age(job: Job, by: Rules, some_ms: int, more_ms: int) -> None:
    """A level once reached is never unreached."""
    found = limits_of(job, by)
    younger, older = (reached(age_ms, found) or "" for age_ms in sorted((some_ms, more_ms)))
    assert RANK[younger] <= RANK[older]


@given(leases(), rule_sets(), st.sampled_from([None, 0, 10**9]), st.booleans())
def test_a_lease_gets_at_most_one_level_and_it_is_higher_than_before(
    one: TicketRecord, by: Rules, idle_ms: int | None, gone: bool
) -> None:
    """The promise of the three levels, for any ages, marks and rules."""
    orders = judged(one, by=by, runs={"l": Reading(idle_ms=idle_ms, gone=gone)})
    levels = levels_of(orders)
    assert len(levels) <= 1
    for order in orders:
        assert by.monitor.enabled
        assert by.monitor.auto_recovery or isinstance(order, Mark | Miss)
        if isinstance(order, Mark):
            assert RANK[order.level] > RANK[one.level]
            assert order.level == reached(one.held_ms, limits_of(one.job, by))
    assert len({type(order) for order in orders}) == len(orders)


@given(leases(), rule_sets())
def test_after_the_time_until_the_next_look_something_new_is_due_and_not_before(one: TicketRecord, by: Rules) -> None:
    """The enforcer sleeps so long: too long would be late, too short would be a poll."""
    wait_s = judging.next_look_s(picture(one), Readings(), by, NOW_S)
    assert wait_s > 0
    if wait_s == float("inf"):
        return
    limit = limits_of(one.job, by)
    states = []
    for passed_ms in (0, max(0, int(wait_s * 1000) - 1), int(wait_s * 1000) + 1):
        later = msgspec.structs.replace(
            one,
            held_ms=one.held_ms + passed_ms,
            seen_age_ms=None if one.seen_age_ms is None else one.seen_age_ms + passed_ms,
            heartbeat_age_ms=None if one.heartbeat_age_ms is None else one.heartbeat_age_ms + passed_ms,
        )
        states.append((reached(later.held_ms, limit), judging.is_silent(later, by)))
    assert states[0] == states[1]
    assert states[2] != states[0]


# Silence.


@pytest.mark.parametrize(("beat_ms", "orders"), [(299_999, []), (300_000, [Miss, Revoke])])
def test_a_task_that_reports_by_itself_and_is_silent_is_ended(beat_ms: int, orders: list[type]) -> None:
    """With `heartbeat="manual"` silence alone is a stall, however much CPU is used."""
    found = judged(
        lease(10, heartbeat="manual", seen_ms=0, beat_ms=beat_ms), runs={"l": Reading(idle_ms=0, gone=False)}
    )
    assert [type(order) for order in found] == orders


def test_a_manual_task_that_never_spoke_is_silent_since_its_begin() -> None:
    """Otherwise one that hangs at its start is never found."""
    assert not judged(lease(4.9, heartbeat="manual"))
    assert [type(order) for order in judged(lease(5, heartbeat="manual"))] == [Miss, Revoke]


@pytest.mark.parametrize(
    ("reading", "orders"),
    [
        (None, [Miss]),
        (Reading(), [Miss]),
        (Reading(idle_ms=0), [Miss]),
        (Reading(idle_ms=299_999), [Miss]),
        (Reading(idle_ms=300_000), [Miss, Revoke]),
    ],
)
def test_a_silent_automatic_task_is_ended_only_if_its_run_is_known_to_have_done_nothing(
    reading: Reading | None, orders: list[type]
) -> None:
    """What is not known is never held against a holder: it may compute with the interpreter blocked."""
    runs = {"l": reading} if reading else {}
    assert [type(order) for order in judged(lease(10, seen_ms=300_000), runs=runs)] == orders


def test_a_body_that_computes_for_long_without_reporting_is_not_touched() -> None:
    """Its process's keepalives go on, so it is heard; ten minutes without a word of its own are its own affair."""
    assert not judged(lease(20, seen_ms=4000, beat_ms=None), runs={"l": Reading(idle_ms=10**9)})


def test_a_silence_is_told_once_and_a_new_one_again() -> None:
    """An alert at each look would be noise; a second stall is news."""
    assert not judged(lease(20, seen_ms=400_000, missed_ms=99_000))
    assert [type(order) for order in judged(lease(20, seen_ms=400_000, missed_ms=800_000))] == [Miss]


def test_an_unknown_age_is_not_silence() -> None:
    """An older ledger does not tell it."""
    assert not judged(lease(20, seen_ms=None))


# Recoveries.


def recovery(tries: int = 1, *, tried_ago_s: float = 100.0, given_up: bool = False) -> Recovery:
    """A lease that was to be taken."""
    return Recovery(
        lease="l",
        token=7,
        gpus=("gpu_lock:0",),
        why="hard_timeout",
        tries=tries,
        tried_at_s=NOW_S - tried_ago_s,
        given_up=given_up,
    )


def recovering(one: Recovery, snapshot: Snapshot, by: Rules = RULES) -> list[type]:
    """What must be done about that recovery."""
    orders = judging.judge(snapshot, Readings(recoveries={"l": one}), by, NOW_S)
    return [type(order) for order in orders]


def test_a_try_that_did_not_come_through_is_repeated_after_the_delay() -> None:
    """The store may have been away for that moment."""
    stands = picture(lease(130))
    assert recovering(recovery(1, tried_ago_s=59), stands) == []
    assert recovering(recovery(1, tried_ago_s=60), stands) == [Revoke]
    assert recovering(recovery(3), stands) == [Revoke]


def test_after_the_last_retry_a_person_is_told_once_and_tries_go_on() -> None:
    """A lease that stands for ever after an hour of trouble helps nobody."""
    stands = picture(lease(130))
    assert recovering(recovery(4), stands) == [GiveUp]
    assert recovering(recovery(5, given_up=True), stands) == [Revoke]


def test_a_run_that_does_not_leave_its_gpu_is_signalled_again_and_then_given_up() -> None:
    """The gpu is quarantined by then; settling is still under way and waits."""
    assert recovering(recovery(1), picture(gpu_state="settling")) == []
    assert recovering(recovery(1), picture(gpu_state="quarantined")) == [Press]
    assert recovering(recovery(1, tried_ago_s=1), picture(gpu_state="quarantined")) == []
    assert recovering(recovery(4), picture(gpu_state="quarantined")) == [GiveUp]
    assert recovering(recovery(4, given_up=True), picture(gpu_state="quarantined")) == []


def test_a_recovery_is_over_when_others_may_have_the_gpu() -> None:
    """Only then it has succeeded."""
    assert judging.is_over(recovery(), picture())
    assert judging.is_over(recovery(), picture(msgspec.structs.replace(lease(), id="next", token=8)))
    assert not judging.is_over(recovery(), picture(lease(130)))
    assert not judging.is_over(recovery(), picture(gpu_state="settling"))
    assert not judging.is_over(recovery(), picture(gpu_state="quarantined"))


def test_the_next_try_is_a_moment_to_look_at() -> None:
    """Else it would come with the next full check only."""
    known = Readings(recoveries={"l": recovery(1, tried_ago_s=20)})
    assert judging.next_look_s(picture(gpu_state="quarantined"), known, RULES, NOW_S) == 40.0


def test_a_holder_whose_process_is_gone_is_buried_and_not_judged_further() -> None:
    """What no event told is found at the full check."""
    orders = judged(lease(130), runs={"l": Reading(gone=True)})
    assert [type(order) for order in orders] == [Bury]
    assert not judged(lease(1), runs={"l": Reading(gone=None)})


def test_those_who_were_asked_to_stop_are_asked_again() -> None:
    """A ring is only a hint and may be lost."""
    snapshot = picture(lease(70, level="soft"), lease(10, id="young"), lease(40, id="warned", level="warning"))
    assert [mark.lease for mark in judging.reminders(snapshot, Readings(), RULES)] == ["l"]


# Heartbeats, and what the runs use.


def test_a_heartbeat_record_has_the_documented_fields() -> None:
    """Programs written for the source documents read them by name."""
    job = Job(task="paddleocr", task_id="paddleocr_task_123")
    one = msgspec.structs.replace(lease(5, job=job, beat_ms=2000, seen_ms=3000), percent=45.0, note="frame 100")
    assert msgspec.to_builtins(heartbeat_record(one, 1706458800.0)) == {
        "task_id": "paddleocr_task_123",
        "status": "running",
        "progress": 45.0,
        "message": "frame 100",
        "start_time": 1706458500.0,
        "last_update": 1706458798.0,
    }
    quiet = heartbeat_record(lease(5, seen_ms=None), 1000.0)
    assert (quiet.task_id, quiet.progress, quiet.last_update) == ("whisper#7", 0.0, 700.0)


def test_tasks_are_active_stalled_dead_or_orphaned() -> None:
    """The classes of the source documents, each in its own sense."""
    snapshot = picture(
        lease(1, id="well"),
        lease(10, id="stalled", seen_ms=300_000),
        lease(1, id="dead"),
        lease(1, id="joined", state="member", of="well"),
        lease(1, id="alone", state="member", of="no-more"),
    )
    found = tasks_of(snapshot, Readings(runs={"dead": Reading(gone=True)}), RULES)
    assert found == Tasks(active=("well", "joined"), stalled=("stalled",), dead=("dead",), orphaned=("alone",))
    assert [finding.kind for finding in findings_of(snapshot, found, RULES)] == ["stalled", "dead", "orphaned"]
    assert orphans(["whisper#7", "other"], snapshot) == ("other",)


def test_what_is_wrong_is_found() -> None:
    """An overdue hold and a quarantined card make a check unhealthy."""
    snapshot = picture(lease(130), gpu_state="quarantined")
    kinds = [finding.kind for finding in findings_of(snapshot, tasks_of(snapshot, Readings(), RULES), RULES)]
    assert kinds == ["overdue", "quarantined"]
    assert not findings_of(picture(lease(1)), tasks_of(picture(lease(1)), Readings(), RULES), RULES)


samples = st.builds(Sample, cpu_ticks=st.sampled_from([None, 1, 2]), gpu_busy=st.sampled_from([None, True, False]))


@given(st.lists(st.tuples(samples, st.floats(0, 100)), min_size=1, max_size=12))
def test_idleness_is_counted_only_over_samples_that_all_say_the_same(steps: list[tuple[Sample, float]]) -> None:
    """One sample that shows work, or shows nothing, begins the count anew."""
    now_s, run, times = 0.0, None, []
    for sample, passed_s in steps:
        now_s += passed_s
        times.append(now_s)
        run = watched(run, sample, now_s)
    assert isinstance(run, Watched)
    last = steps[-1][0]
    idle_ms = reading_of(run).idle_ms
    if last.cpu_ticks is None or last.gpu_busy is not False:
        assert idle_ms is None
        return
    since_s = now_s
    for (sample, _), at_s in zip(reversed(steps), reversed(times), strict=True):
        if sample != last:
            break
        since_s = at_s
    assert idle_ms == round((now_s - since_s) * 1000)


def test_a_run_that_is_not_seen_whole_says_nothing_of_its_use() -> None:
    """A member that is missing, or whose pid another process has by now, may be the one that works."""
    table = {
        pid: Stat(pid=pid, parent=1, started_ticks=10, state="S", threads=1, cpu_ticks=pid, name="x") for pid in (5, 6)
    }
    assert cpu_ticks_of(frozenset({Process(5, 10), Process(6, 10)}), table) == 11
    assert cpu_ticks_of(frozenset({Process(5, 10), Process(7, 10)}), table) is None
    assert cpu_ticks_of(frozenset({Process(5, 11)}), table) is None


@pytest.mark.parametrize(
    ("cards", "busy"),
    [([], None), ([None], None), ([False], False), ([False, None], None), ([True, None], True), ([False, True], True)],
)
def test_a_card_that_does_not_tell_is_not_idle(cards: list[bool | None], busy: bool | None) -> None:
    """Old drivers and MIG instances tell no utilization."""
    assert any_busy(cards) is busy
