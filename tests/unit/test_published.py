"""What a request goes by: file and environment of the pool's daemon, its own environment, live changes, a trial."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from gpulockd.client.published import InForce, Published, gpu_lock_for, share_of
from gpulockd.config.results import Candidate
from gpulockd.daemon.configuration import Layers
from gpulockd.daemon.current import Current
from gpulockd.daemon.inforce import InForce as DaemonInForce
from gpulockd.errors import ConfigError
from gpulockd.settings import GpuLockBlock

POOL: dict[str, Any] = {
    "gpu_lock": {"poll_interval": 1.0, "max_wait_time": 100.0, "lock_timeout": 50.0},
    "tasks": {"shop.render": {"max_wait_time": 200.0}},
    "live": {"gpu_lock": {"lock_timeout": 70.0}},
    "revision": 4,
}


def now(defaults: dict[str, Any], session: str = "", task: str = "") -> GpuLockBlock:
    """How that request waits."""
    return gpu_lock_for(defaults, session, task).gpu_lock


def test_a_live_change_goes_over_the_environment_and_that_over_the_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who changes the fleet must not be stopped by a variable that somebody forgot in a unit file."""
    monkeypatch.setenv("GPU_LOCK_MAX_WAIT_TIME", "2m")
    monkeypatch.setenv("GPU_LOCK_LOCK_TIMEOUT", "60")
    block = now(POOL)
    assert (block.poll_interval, block.max_wait_time, block.lock_timeout) == (1.0, 120.0, 70.0)
    assert block.max_poll_interval == GpuLockBlock().max_poll_interval
    assert gpu_lock_for(POOL).revision == 4


def test_what_is_said_of_a_task_goes_before_what_is_said_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever layer: a general live change must not shorten the wait that one task was given on purpose."""
    general = {**POOL, "live": {"gpu_lock": {"max_wait_time": 5.0}}}
    assert (now(general, task="shop.render").max_wait_time, now(general, task="ocr").max_wait_time) == (200.0, 5.0)
    monkeypatch.setenv("GPULOCKD_TASKS", '{"shop.render": {"max_wait_time": "4m", "poll_interval": 2}}')
    assert (now(general, task="shop.render").max_wait_time, now(general, task="shop.render").poll_interval) == (240, 2)
    special = {**POOL, "live": {"tasks": {"shop.render": {"max_wait_time": 7.0}}}}
    assert (now(special, task="shop.render").max_wait_time, now(special, task="shop.render").poll_interval) == (7, 2)


def test_a_change_of_either_side_counts_at_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was worked out is kept, but for no request longer than it holds."""
    assert gpu_lock_for(POOL) is gpu_lock_for(POOL)
    monkeypatch.setenv("GPU_LOCK_MAX_WAIT_TIME", "3")
    assert now(POOL).max_wait_time == 3.0
    assert now({**POOL, "live": {"gpu_lock": {"max_wait_time": 9.0}}}).max_wait_time == 9.0
    monkeypatch.delenv("GPU_LOCK_MAX_WAIT_TIME")
    assert now(POOL).max_wait_time == 100.0


def test_sessions_below_the_threshold_go_by_the_candidate() -> None:
    """A trial replaces what is live for its share, and for nobody else."""
    rollout = "r-1"
    candidate = {"live": {"gpu_lock": {"poll_interval": 0.2}}, "revision": 4, "rollout": rollout, "below": 0.5}
    pool = {**POOL, "candidate": candidate}
    ids = [UUID(int=n << 96).hex for n in range(1, 200)]
    for id in ids:
        found = Published.of(pool, id).in_force({}, "")
        inside = share_of(rollout, id) < 0.5
        assert found.is_tried_out == inside
        assert (found.gpu_lock.poll_interval, found.gpu_lock.lock_timeout) == ((0.2, 50.0) if inside else (1.0, 70.0))
    assert 60 < sum(share_of(rollout, id) < 0.5 for id in ids) < 140
    for below, share in ((0.0, False), (1.0, True)):
        at = {**POOL, "candidate": {**candidate, "below": below}}
        assert {gpu_lock_for(at, id).is_tried_out for id in ids} == {share}


def test_a_place_is_the_same_wherever_it_is_worked_out() -> None:
    """The daemon tells the trial's requests from the others by the first eight characters that events say."""
    id = uuid4().hex
    assert share_of("r", id) == share_of("r", id[:8])
    assert share_of("r", "0badcafe") == pytest.approx(share_of("r", "0badcafe" + "f" * 24))
    assert {round(share_of(f"r{n}", id), 6) for n in range(20)} != {round(share_of("r", id), 6)}
    assert all(0 <= share_of("r", uuid4().hex) < 1 for _ in range(100))


def test_layers_that_nobody_has_seen_together_still_make_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long pause in the environment and a short longest pause from the pool: the request goes on."""
    monkeypatch.setenv("GPU_LOCK_POLL_INTERVAL", "20")
    assert now({}).max_poll_interval == 20.0


def test_what_another_version_publishes_is_taken_as_far_as_it_is_understood() -> None:
    """Daemon and clients are not updated in one moment."""
    odd = {
        "gpu_lock": {"max_wait_time": "1h", "brand_new": 1, "poll_interval": 0.5},
        "tasks": 5,
        "live": [],
        "revision": "x",
    }
    assert gpu_lock_for(odd, "s", "t") == InForce(gpu_lock=GpuLockBlock(poll_interval=0.5), revision=0)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("GPU_LOCK_MAX_WAIT_TIME", "soon"), ("GPU_LOCK_POLL_INTERVAL", "1ms"), ("GPULOCKD_TASKS", '{"a": {"b": 1}}')],
)
def test_a_variable_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    """The request fails with the cure, and the next one works once the variable is right."""
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=f"^{variable}: "):
        gpu_lock_for(POOL)
    monkeypatch.delenv(variable)
    assert now(POOL).max_wait_time == 100.0


def test_clients_are_told_nothing_that_they_do_not_read() -> None:
    """Whoever may take a lock can read what a pool publishes, so no secret of the daemon's may be in it."""
    secret = {
        "notify": {
            "webhooks": {"ops": {"url": "https://hooks.example/SEKRET", "secret": "SEKRET"}},
            "emails": {"m": {"host": "h", "sender": "a@b", "to": ["c@d"], "password": "SEKRET"}},
            "apprise": {"p": {"urls": ["tgram://SEKRET/x"]}},
        },
        "redis": {"url": "redis://:SEKRET@h/0"},
        "web": {"listen": "127.0.0.1:1"},
        "alerts": {"window": 100.0},
    }
    live = {"gpu_lock": {"poll_interval": 0.25}, "tasks": {"a": {"max_wait_time": 7.0}}}
    layers = Layers(file="config.yml", file_tree=secret)
    in_force = DaemonInForce("p", Current(layers.settings()), layers)
    doc = {"all": {"notify": secret["notify"], "alerts": {"window": 101.0}}, "pools": {"p": live}}
    in_force.take(doc, 3)
    in_force.try_out(Candidate(live=doc, revision=3, rollout="r", below=0.5), 3)
    said = in_force.published(3)
    blocks = {"gpu_lock", "tasks", "session", "gpu_lock_monitor", "settle"}
    assert set(said) == {*blocks, "require_guard", "revision", "live", "candidate"}
    assert said["live"] == said["candidate"]["live"] == live
    assert "SEKRET" not in repr(said)
