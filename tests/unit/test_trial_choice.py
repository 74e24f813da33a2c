"""Which configuration a name means, and the load that both configurations get."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpulockd.errors import ConfigError
from gpulockd.trial.chosen import changed, choose, of_change
from gpulockd.trial.load import TASKS, Load, of_names

LIVE = {
    "gpu_lock": {"poll_interval": 2.0, "max_wait_time": 900.0, "lock_timeout": 1234.0},
    "redis": {"url": "redis://elsewhere"},
    "profiles": {"night": {"poll_interval": 5.0}},
    "pool": None,
}


def test_a_change_of_two_keys_takes_the_rest_from_the_live_configuration() -> None:
    """B-601 gives dicts with two keys only."""
    chosen = of_change("test", {"gpu_lock": {"poll_interval": 0.5, "max_wait_time": 300}}, LIVE)
    assert chosen.tree["gpu_lock"]["lock_timeout"] == 1234.0
    assert chosen.tree["gpu_lock"]["max_poll_interval"] == 10.0
    assert chosen.tree["gpu_lock"]["max_wait_time"] == 300.0
    assert chosen.change == {"gpu_lock": {"poll_interval": 0.5, "max_wait_time": 300.0}}


def test_a_trial_never_takes_another_store_from_a_configuration() -> None:
    """It would load the store that it is to spare."""
    for chosen in (choose("live", LIVE), of_change("file", {"redis": {"url": "redis://elsewhere"}}, LIVE)):
        assert not {"redis", "web", "notify", "alerts", "pool"} & chosen.tree.keys()


def test_a_profile_is_the_change_that_applying_it_would_make() -> None:
    """The verdict is remembered for that change."""
    optimized = choose("optimized", None)
    assert optimized.change == {
        "gpu_lock": {"poll_interval": 0.5, "max_wait_time": 300.0, "lock_timeout": 600.0, "max_poll_interval": 5.0}
    }
    assert changed(choose("defaults", None), optimized) == (
        "gpu_lock.lock_timeout",
        "gpu_lock.max_poll_interval",
        "gpu_lock.max_wait_time",
        "gpu_lock.poll_interval",
    )
    assert choose("night", LIVE).tree["gpu_lock"]["poll_interval"] == 5.0


def test_a_file_is_read_as_the_daemon_reads_it(tmp_path: Path) -> None:
    """Durations as text, unknown keys refused with their place."""
    file = tmp_path / "candidate.yml"
    file.write_text("gpu_lock:\n  max_wait_time: 5m\n")
    chosen = choose(str(file), LIVE)
    assert chosen.change == {"gpu_lock": {"max_wait_time": 300.0}}
    file.write_text("gpu_lock:\n  max_wait: 5m\n")
    with pytest.raises(ConfigError, match=r"candidate.yml:2:3: .*max_wait"):
        choose(str(file), LIVE)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("optimised", "did you mean 'optimized'"),
        ("there/is/none.yml", "no such configuration file"),
        ("live", "none is"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_a_cure(name: str, says: str) -> None:
    """A typo must not become the defaults."""
    with pytest.raises(ConfigError, match=says):
        choose(name, None)


def test_both_configurations_get_the_same_load() -> None:
    """Only the configuration may differ."""
    load = Load(gpus=3, scale=2.0)
    assert load.starts(1, 7) == load.starts(1, 7)
    assert load.starts(1, 7) != load.starts(2, 7)
    kinds = [(start.key, start.task) for start in load.starts(0, 7)]
    assert len(kinds) == len(set(kinds)) == 3 * len(TASKS)
    assert {start.hold_s for start in load.starts(0, 7)} == {2.0 * task.hold_s for task in TASKS}


def test_tasks_are_known_by_their_documented_names() -> None:
    """B-109 names them."""
    named = of_names(["paddleocr_short_task", "ffmpeg_medium_task", "faster_whisper_long_task"])
    assert named == TASKS
    assert of_names(["another"])[0].hold_s == TASKS[0].hold_s
