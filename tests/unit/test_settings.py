"""The settings as one tree: names, kinds, ranges, what must fit together, and how trees are merged and flattened."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from gpulockd.daemon.levels import Rules, limits_of
from gpulockd.errors import ConfigError
from gpulockd.model import Job
from gpulockd.settings import (
    NEEDS_RESTART,
    PROFILES,
    Settings,
    checked,
    flat,
    leaves,
    merged,
    needs_restart,
    nested,
    settings_from,
    value_at,
    without,
)
from gpulockd.settings.names import meant

TREE: dict[str, Any] = {
    "gpu_lock": {"poll_interval": 0.5},
    "tasks": {"shop.render": {"max_wait_time": 7200.0, "hard_timeout": 60.0}},
    "alerts": {"window": 60.0, "rules": [{"name": "a", "condition": "true"}]},
}


def test_paths_and_trees_say_the_same() -> None:
    """A task may have dots in its name; it must come back as one name."""
    paths = {
        "gpu_lock.poll_interval": 0.5,
        "tasks.shop.render.max_wait_time": 7200.0,
        "tasks.shop.render.hard_timeout": 60.0,
        "alerts.window": 60.0,
        "alerts.rules": [{"name": "a", "condition": "true"}],
    }
    assert flat(TREE) == paths
    assert nested(paths) == TREE
    assert value_at(TREE, "tasks.shop.render.max_wait_time") == 7200.0
    assert value_at(TREE, "tasks.shop.max_wait_time") is None
    assert value_at(TREE, "gpu_lock.poll_interval.x") is None
    assert without(TREE, "tasks", "alerts.rules", "gpu_lock.poll_interval") == {"alerts": {"window": 60.0}}
    whole = msgspec.to_builtins(Settings())
    assert merged(nested(flat(whole)), {"tasks": {}, "notify": whole["notify"]}) == whole


def test_later_trees_go_over_earlier_ones_key_by_key() -> None:
    """A layer that sets one key must not hide what the one below sets beside it; and changes none of them."""
    over: dict[str, Any] = {
        "tasks": {"shop.render": {"hard_timeout": 90.0}, "ocr": {"warning": 1.0}},
        "alerts": {"rules": []},
    }
    whole = merged(TREE, over)
    assert whole["tasks"]["shop.render"] == {"max_wait_time": 7200.0, "hard_timeout": 90.0}
    assert whole["alerts"] == {"window": 60.0, "rules": []}
    whole["tasks"]["ocr"]["warning"] = 2.0
    assert (over["tasks"]["ocr"]["warning"], TREE["tasks"]["shop.render"]["hard_timeout"]) == (1.0, 60.0)


def test_every_value_comes_out_as_its_setting_has_it() -> None:
    """Durations are seconds, shares are parts of one, and null is not set; what was checked stays as it is."""
    tree = {
        "pool": None,
        "gpu_lock": {"poll_interval": "250ms", "max_wait_time": 0, "exponential_backoff": "no"},
        "rollout": {"stages": [["10%", "24h"], [0.5, "48h"]], "timeout_rate": "5%"},
        "alerts": [{"name": "a", "condition": "true"}],
        "tasks": {7: {"warning": "1m"}, "x": None},
    }
    found = checked(tree)
    assert found == {
        "gpu_lock": {"poll_interval": 0.25, "max_wait_time": 0.0, "exponential_backoff": False},
        "rollout": {"stages": [[0.1, 86400.0], [0.5, 172800.0]], "timeout_rate": 0.05},
        "alerts": {"rules": [{"name": "a", "condition": "true"}]},
        "tasks": {"7": {"warning": 60.0}},
    }
    assert checked(found) == found
    assert settings_from(tree).rollout.stages == ((0.1, 86400.0), (0.5, 172800.0))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("gpu_lock.poll_interval", 0.01, "the shortest is 0.05 s"),
        ("gpu_lock.poll_interval", 0, "too short"),
        ("gpu_lock.poll_interval", "25h", "the longest is 1 d"),
        ("gpu_lock.max_wait_time", "400d", "the longest is 366 d"),
        ("gpu_lock.max_wait_time", math.nan, "duration"),
        ("gpu_lock.max_wait_time", "nan", "duration"),
        ("gpu_lock.max_wait_time", math.inf, "duration"),
        ("gpu_lock.max_wait_time", 10**400, "duration"),
        pytest.param("gpu_lock.max_wait_time", 10**5000, "duration", id="huge duration"),
        ("gpu_lock.max_wait_time", "9" * 400 + "h", "duration"),
        ("gpu_lock.max_wait_time", -1, "duration"),
        ("gpu_lock.max_wait_time", True, "not a duration"),
        ("gpu_lock.max_wait_time", [1], "a list is not a duration"),
        ("gpu_lock.exponential_backoff", "perhaps", "neither true nor false"),
        ("gpu_lock.exponential_backoff", 1, "neither true nor false"),
        ("gpu_lock_monitor.cleanup.max_retry", -1, "from 0 to 1000"),
        ("gpu_lock_monitor.cleanup.max_retry", 1.5, "not a whole number"),
        pytest.param("gpu_lock_monitor.cleanup.max_retry", 10**5000, "out of range", id="huge number"),
        ("gpus.simulate", 5000, "from 0 to 64"),
        ("config.rollback_timeout_rate", 1.1, "from 0 to 1"),
        ("config.rollback_timeout_rate", math.nan, "from 0 to 1"),
        ("config.rollback_timeout_rate", "many", "not a number"),
        ("rollout.stages", [[0.1]], "write 2"),
        ("rollout.stages", {"a": 1}, "not a list"),
        ("alerts.rules", [{"name": "a"}], "'condition' is missing"),
        ("alerts.rules", [{"name": "a", "condition": "true"}] * 201, "200 are the most"),
        ("settle.policy", "sometimes", "none of after_loss, always, never"),
        ("pool", 5, "put it in quotes"),
        ("pool", "a\nb", "line break"),
        ("pool", "\udcff", "half a character"),
        ("web.listen", "x" * 5000, "4096"),
        ("gpu_lock", 5, "is not a block"),
        ("tasks", [1], "is not a block"),
        ("tasks", {"": {}}, "1 to 200 characters"),
        ("tasks", {"a\nb": {}}, "1 to 200 characters"),
        ("tasks", {"a" * 201: {}}, "1 to 200 characters"),
        ("tasks", {str(n): {} for n in range(1001)}, "1000 are the most"),
        ("tasks.w.memory", 1, "unknown key"),
    ],
)
def test_odd_values_are_refused_with_what_they_should_be(path: str, value: Any, words: str) -> None:
    """A number that overflows a clock would take the daemon with it; a typing error is said where it stands."""
    with pytest.raises(ConfigError) as caught:
        checked(nested({path: value}))
    assert caught.value.path.startswith(path)
    assert words in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"gpu_lock_monitor.timeout_levels.warning": "2h"}, "gpu_lock_monitor.timeout_levels"),
        ({"gpu_lock_monitor.timeout_levels.hard_timeout": "30m"}, "gpu_lock_monitor.timeout_levels"),
        ({"gpu_lock.poll_interval": 20}, "gpu_lock.poll_interval"),
        ({"gpu_lock.max_poll_interval": 1}, "gpu_lock.poll_interval"),
        ({"gpu_lock_monitor.heartbeat.interval": 300}, "gpu_lock_monitor.heartbeat.interval"),
        ({"session.ttl": 5}, "session.ttl"),
        ({"session.rpc_deadline": 4}, "session.ttl"),
        ({"session.claim_window": 21}, "session.claim_window"),
        ({"gpus.guard": False, "gpus.require_guard": True}, "gpus.require_guard"),
        ({"tasks.w.warning": "2h", "tasks.w.soft_timeout": "1h"}, "tasks.w"),
        ({"tasks.w.warning": "90m"}, "tasks.w.warning"),
        ({"tasks.w.warning": "10m", "tasks.w.hard_timeout": "5m"}, "tasks.w"),
        ({"tasks.w.poll_interval": 11}, "tasks.w.poll_interval"),
        ({"profiles.p.poll_interval": 2, "profiles.p.max_poll_interval": 1}, "profiles.p.poll_interval"),
        ({"rollout.stages": [[0.5, 1], [0.1, 1]]}, "rollout.stages"),
        ({"rollout.stages": [[0, 1]]}, "rollout.stages"),
        ({"alerts.rules": 2 * [{"name": "a", "condition": "true"}]}, "alerts.rules"),
    ],
)
def test_what_does_not_fit_together_is_refused(tree: dict[str, Any], path: str) -> None:
    """Each value alone is good; together they would never work."""
    checked(nested(tree))
    with pytest.raises(ConfigError) as caught:
        settings_from(nested(tree))
    assert caught.value.path == path
    assert "warning <=" not in caught.value.message or " s, " in caught.value.message, "the values are named"
    assert any(said.startswith(named) for said in tree for named in caught.value.involved)


def test_a_task_may_have_limits_of_its_own_beside_the_usual_ones() -> None:
    """Longer ones stretch what is left out, so they contradict nothing."""
    tasks = {
        "short": {"hard_timeout": "1m"},
        "long": {"hard_timeout": "10h", "warning": "4h"},
        "all": {"warning": "3h", "soft_timeout": "4h", "hard_timeout": "5h"},
        "waits": {"max_wait_time": "2h", "lock_timeout": 20, "poll_interval": "50ms"},
    }
    said = settings_from({"tasks": tasks})
    assert said.tasks["long"].warning == 4 * 3600
    waits = said.gpu_lock_of("waits")
    assert (waits.max_wait_time, waits.lock_timeout, waits.poll_interval, waits.max_poll_interval) == (
        7200,
        20,
        0.05,
        10,
    )
    assert said.gpu_lock_of("short") == said.gpu_lock_of("nobody") == said.gpu_lock
    of_short = limits_of(Job(task="short"), Rules.of(said))
    assert (of_short.hard_ms, limits_of(Job(task="waits"), Rules.of(said)).hard_ms) == (60_000, 7_200_000)


def test_profiles_have_the_documented_numbers_and_are_changed_key_by_key() -> None:
    """A-057 and A-059."""
    said = settings_from({"profiles": {"optimized": {"poll_interval": "400ms"}, "mine": {"max_wait_time": 1}}}).profiles
    assert (said["optimized"].poll_interval, said["optimized"].max_wait_time) == (0.4, 300.0)
    assert (said["optimized"].lock_timeout, said["optimized"].max_poll_interval) == (600.0, 5.0)
    high, low = said["high_load"], said["low_load"]
    assert (high.poll_interval, high.max_wait_time, high.lock_timeout) == (0.2, 600.0, 1200.0)
    assert (low.poll_interval, low.max_wait_time, low.lock_timeout) == (1.0, 120.0, 300.0)
    assert said["mine"].max_wait_time == 1.0
    assert settings_from({}).profiles == PROFILES


def test_each_profile_alone_fits_the_defaults() -> None:
    """`config apply --profile` must not be refused on a fresh machine."""
    for profile in PROFILES.values():
        settings_from({"gpu_lock": msgspec.to_builtins(profile)})


def test_what_needs_a_restart_is_named() -> None:
    """The API refuses these; a name that is no setting would refuse nothing."""
    paths = leaves()
    assert all(path in paths or any(leaf.startswith(f"{path}.") for leaf in paths) for path in NEEDS_RESTART)
    assert all(map(needs_restart, ("pool", "redis.url", "redis.server_binary", "gpus.simulate", "web.listen")))
    assert not any(map(needs_restart, ("gpus.foreign", "web.writes", "gpu_lock.poll_interval", "pools")))
    assert "tasks.*.max_wait_time" in paths


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("pol_interval", "poll_interval"),
        ("poll_intervall", "poll_interval"),
        ("max_wiat_time", "max_wait_time"),
        ("Poll_Interval", "poll_interval"),
        ("lock_time_out", "lock_timeout"),
        ("zzz", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_meant(written: str, name: str | None) -> None:
    """A slip of the hand is one or two characters; anything else is no hint."""
    assert meant(written, Settings().gpu_lock.__struct_fields__) == name


def test_a_program_that_uses_a_lock_loads_neither_yaml_nor_difflib() -> None:
    """The client reads settings at each start of each program."""
    code = "import sys, gpulockd.client.lock; print([m for m in ('ruamel', 'difflib', 'yaml') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("block", ["gpu_lock", "tasks.shop.render", "profiles.mine"])
def test_a_lock_timeout_leaves_a_healthy_program_time_for_its_next_sign_of_life(block: str) -> None:
    """With 1 s, and a keepalive of 5 s, a program that was well lost its gpu."""
    path = f"{block}.lock_timeout"
    with pytest.raises(ConfigError, match=r"shorter than the 20 s of session\.ttl") as refused:
        settings_from(nested({path: 1}))
    assert refused.value.path == path
    quick = {"session": {"ttl": 2.0, "keepalive": 0.3, "rpc_deadline": 0.4, "margin": 0.1, "claim_window": 0.5}}
    settings_from(nested({path: 2}) | quick)
