"""What a change is, and the document that undoes one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulockd.config.change import (
    STAYS,
    base_as_of,
    block_of,
    diff,
    lasting,
    live_diff,
    needs_trial,
    previous_stable,
    refuse_restarts,
    restored,
    sparing,
    spoken,
    values_of,
)
from gpulockd.config.live import Live, live_for
from gpulockd.errors import ConfigError
from gpulockd.ledger.revisions import Change, Revision
from gpulockd.settings import Settings, merged, nested, settings_from

OLD = {"gpu_lock": {"poll_interval": 2.0}}
NEW = {"gpu_lock": {"poll_interval": 0.5, "max_wait_time": 9.0}}


def revision(number: int, *, stable: bool = False, of: int | None = None) -> Revision:
    """A revision of which only that counts."""
    return Revision(number=number, at_ms=0, live={}, stable=stable, of=of)


def test_a_diff_names_each_leaf_before_and_after() -> None:
    """History shows what changed, also what is set no more."""
    found = diff({"a": 1, "b": 2}, {"b": 3, "c": 4})
    assert [(one.path, one.before, one.after) for one in found] == [("a", 1, None), ("b", 2, 3), ("c", None, 4)]
    assert live_diff({"pools": {"x": OLD}}, {})[0].path == "pools.x.gpu_lock.poll_interval"


@pytest.mark.parametrize("path", ["redis.url", "web.listen", "pool", "gpus.simulate", "gpus.guard", "config.restart"])
def test_what_needs_a_restart_or_runs_a_command_is_refused_with_the_cure(path: str) -> None:
    """A live change that would count for nothing, or run a program as the daemon, must not look as if it were taken."""
    with pytest.raises(ConfigError, match=r"config\.yml") as refused:
        refuse_restarts({"gpu_lock.poll_interval", path})
    assert getattr(refused.value, "path", None) == path
    refuse_restarts({"gpu_lock.poll_interval"})


def test_passwords_go_neither_into_history_nor_into_lines_for_people() -> None:
    """The history can be read without a token."""
    assert lasting({"redis": {"url": "redis://:secret@h"}, **OLD}) == OLD
    assert "secret" not in spoken([Change(path="notify.webhooks", before=None, after="https://secret")])


def test_going_back_over_a_change_of_a_file_pins_what_was_in_force() -> None:
    """The file stays as it is, and yet what it said before is in force."""
    live = restored({}, 0, {"a": {0: OLD, 1: NEW}}, now=1)
    after = values_of(settings_from(merged(NEW, live_for(live, "a"))))
    assert after == values_of(settings_from(OLD))
    assert live["pins"] == {"a": ["gpu_lock.max_wait_time", "gpu_lock.poll_interval"]}


def test_going_back_leaves_pools_alone_whose_files_did_not_change() -> None:
    """A pin that is not needed would hide the next change of that file."""
    assert restored({"all": OLD, "pools": {}}, 3, {"a": {0: OLD}, "b": {}}, now=5) == {"all": OLD, "pools": {}}


def test_what_a_file_says_of_a_task_is_taken_back_to_what_holds_for_all() -> None:
    """A task's own value cannot be unset over the file, so what holds for all is pinned for it."""
    before = {"gpu_lock": {"max_wait_time": 5.0}}
    after = merged(before, {"tasks": {"whisper": {"max_wait_time": 900.0, "hard_timeout": 60.0}}})
    live = restored({}, 0, {"a": {0: before, 1: after}}, now=1)
    task = settings_from(merged(after, live_for(live, "a"))).tasks["whisper"]
    assert task.max_wait_time == 5.0
    assert task.hard_timeout == Settings().gpu_lock_monitor.timeout_levels.hard_timeout


def test_a_base_counts_from_its_revision_on() -> None:
    """The base of a later revision says nothing of an earlier one."""
    bases = {0: OLD, 4: NEW}
    assert [base_as_of(bases, number) for number in (0, 3, 4, 9)] == [OLD, OLD, NEW, NEW]
    assert base_as_of({4: NEW}, 1) == NEW
    assert base_as_of({}, 1) is None


LEAVES = st.fixed_dictionaries(
    {},
    optional={
        "gpu_lock.poll_interval": st.sampled_from([0.2, 1.0, 2.0]),
        "gpu_lock.max_wait_time": st.sampled_from([0.0, 60.0, 1800.0]),
        "settle.policy": st.sampled_from(["always", "never"]),
        "gpu_lock_monitor.enabled": st.booleans(),
    },
)


@given(LEAVES, LEAVES, LEAVES, LEAVES, LEAVES, LEAVES)
def test_after_going_back_every_pool_goes_by_what_it_went_by(
    all_then: dict[str, object],
    pool_then: dict[str, object],
    a_then: dict[str, object],
    a_now: dict[str, object],
    b_then: dict[str, object],
    b_now: dict[str, object],
) -> None:
    """Whatever files and live documents have become meanwhile, in each pool."""
    live_then = {"all": nested(all_then), "pools": {"a": nested(pool_then)}}
    files = {"a": (nested(a_then), nested(a_now)), "b": (nested(b_then), nested(b_now))}
    live = restored(live_then, 3, {pool: {2: then, 7: now} for pool, (then, now) in files.items()}, now=9)
    for pool, (then, now) in files.items():
        went_by = settings_from(merged(then, live_for(live_then, pool)))
        assert settings_from(merged(now, live_for(live, pool))) == went_by


@pytest.mark.parametrize(
    ("current", "known", "back_to"),
    [
        (revision(0, stable=True), [], None),
        (revision(2), [revision(1), revision(0, stable=True)], 0),
        (revision(2, stable=True), [revision(1), revision(0, stable=True)], 0),
        (revision(3), [revision(2, stable=True), revision(0, stable=True)], 2),
        (revision(3, stable=True, of=0), [revision(2), revision(1, stable=True), revision(0, stable=True)], None),
        (revision(3, of=0), [revision(2), revision(0, stable=True)], 0),
        (revision(4), [revision(3, stable=True, of=1), revision(2), revision(1, stable=True)], 3),
    ],
)
def test_the_way_back_leads_to_the_last_stable_revision_and_only_one_step(
    current: Revision, known: list[Revision], back_to: int | None
) -> None:
    """Who asks twice, unsure whether the first time has worked, must not lose a good configuration as well."""
    assert previous_stable(current, known) == back_to


def test_a_way_back_leaves_alone_who_is_told_of_it() -> None:
    """A rollback once removed the channel that should have told of the timeouts."""
    then = {"all": {"gpu_lock": {"poll_interval": 2.0}, "alerts": {"window": 60.0}}}
    now: Live = {
        "all": {"gpu_lock": {"poll_interval": 9.0}, "notify": {"webhooks": {"ops": {"url": "https://x"}}}},
        "pools": {"a": {"gpu_lock": {"max_wait_time": 3.0}, "rollout": {"least_samples": 3}}},
        "pins": {"a": ["gpu_lock.max_wait_time"]},
    }
    back = sparing(now, then, STAYS.__contains__)
    assert back["all"] == {"gpu_lock": {"poll_interval": 2.0}, "notify": now["all"]["notify"]}
    assert back["pools"] == {"a": {"rollout": {"least_samples": 3}}}
    assert "pins" not in back
    assert sparing(now, now, STAYS.__contains__) == now


def test_a_pools_leaf_is_in_its_block_whatever_the_pool_is_called() -> None:
    """Pools are hosts, with dots in their names."""
    assert block_of("pools.gpu.example.org.gpu_lock.poll_interval") == "gpu_lock"
    assert block_of("tasks.shop.render.max_wait_time") == "tasks"


def test_only_what_a_trial_can_try_needs_one() -> None:
    """`config.require_validation` must not stand in the way of its own end, nor of an alert channel."""
    before = {"all": {"config": {"require_validation": True}}}
    assert not needs_trial(before, {"all": {"notify": {"log": False}}, "pools": {"a.b": {"alerts": {"window": 9.0}}}})
    assert needs_trial(before, {"all": {**before["all"], "gpu_lock": {"poll_interval": 1.0}}})
    assert needs_trial(before, {**before, "pools": {"a.b": {"tasks": {"t": {"max_wait_time": 1.0}}}}})


def test_lines_for_people_are_short() -> None:
    """The rules of alerts are a page; the audit has a line."""
    assert len(spoken([Change(path="alerts.rules", after=["x" * 500])])) < 100
    assert spoken([Change(path=f"tasks.t{n}.max_wait_time", after=1.0) for n in range(20)]).endswith("and 8 more")
