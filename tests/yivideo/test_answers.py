"""What YiVideo's functions answer, held against what really happened: without a daemon, then beside its routes."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gpulockd.client import process
from gpulockd.compat.yivideo import (
    TaskHeartbeatManager,
    get_gpu_lock_config,
    get_gpu_lock_health_summary,
    get_gpu_lock_status,
    get_heartbeat_manager,
    gpu_lock,
    lock_manager,
)
from tests.daemons import STEADY, Daemon
from tests.pools import QUICK, client_here, environment, offer, simulated
from tests.servers import Server
from tests.states import until_blocking
from tests.system.commands import one_daemon

KEY = "gpu_lock:0"
STATISTICS = {
    "total_attempts",
    "successful_acquisitions",
    "timeouts",
    "average_wait_time",
    "last_lock_time",
    "last_lock_holder",
    "total_execution_time",
    "execution_count",
    "event_driven_acquisitions",
    "polling_acquisitions",
    "success_rate",
    "timeout_rate",
    "average_execution_time",
    "history_size",
    "recent_success_rate",
    "event_driven_rate",
    "polling_rate",
    "pub_sub_available",
    "active_waiters",
    "pub_sub_subscriptions",
}
HEALTH = {"status", "issues", "lock_age", "last_lock_holder", "statistics", "timestamp"}
STATUS = {
    "lock_key",
    "is_locked",
    "lock_holder",
    "ttl_seconds",
    "timestamp",
    "health",
    "statistics",
    "recent_history",
    "lock_type",
    "lock_age",
}
SUMMARY = {
    "overall_status",
    "issues_count",
    "total_attempts",
    "success_rate",
    "timeout_rate",
    "average_execution_time",
    "recent_success_rate",
    "lock_holder",
    "lock_age",
    "timestamp",
}
ATTEMPT = {"task_name", "lock_key", "success", "start_time", "end_time", "duration"}


@pytest.fixture
def here(server: Server, pool: str) -> Iterator[None]:
    """This process as a client of a pool with one GPU and no daemon."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        yield


def hold(seconds: float = 0.0, **names: Any) -> None:
    """Hold the lock."""
    with gpu_lock(**names):
        time.sleep(seconds)


def too_late(task: str) -> bool:
    """Ask for the lock in another thread, which waits too long for it."""
    with ThreadPoolExecutor(1) as other:
        return other.submit(lock_manager.acquire_lock_with_smart_polling, task, KEY, {"max_wait_time": 0.1}).result()


def test_nothing_has_happened_and_all_is_well(here: None) -> None:
    """D12, D37: rates of nothing alarm nobody, and a free lock has an answer."""
    status = get_gpu_lock_status()
    assert set(status) == STATUS
    assert (status["is_locked"], status["lock_type"], status["lock_holder"], status["lock_age"]) == (
        False,
        "free",
        None,
        None,
    )
    assert set(status["health"]) == HEALTH and set(status["statistics"]) == STATISTICS
    summary = get_gpu_lock_health_summary()
    assert set(summary) == SUMMARY
    assert (summary["overall_status"], summary["issues_count"], summary["total_attempts"]) == ("healthy", 0, 0)
    assert (summary["success_rate"], summary["timeout_rate"], summary["recent_success_rate"]) == (1.0, 0.0, 1.0)
    assert abs(summary["timestamp"] - time.time()) < 60
    assert lock_manager.get_lock_history() == []


def test_a_story_is_told_as_it_was_without_a_daemon(here: None) -> None:
    """D12, D13: every attempt counts once, waits have a mean, and a lock that is free has no age."""
    began_s = time.time()
    hold(0.1, task="whisper", task_id="w-1")
    hold(0.1, task="whisper", task_id="w-2")
    with gpu_lock(task="ocr", task_id="o-1"):
        assert not too_late("late-1")
        with ThreadPoolExecutor(1) as other:
            waiter = other.submit(hold, 0.0, task="next", task_id="n-1")
            until_blocking(lambda: lock_manager.get_statistics()["active_waiters"] == 1)
            status = get_gpu_lock_status()
            assert (status["is_locked"], status["lock_holder"], status["lock_type"]) == (True, "o-1", "active")
            assert 0 < status["lock_age"] <= time.time() - began_s + 1
            assert 3500 < status["ttl_seconds"] <= 3600
            assert status["health"]["last_lock_holder"] == "o-1"
            assert lock_manager.release_lock("ocr", KEY)
            waiter.result()
    counted = lock_manager.get_statistics()
    assert (counted["total_attempts"], counted["successful_acquisitions"], counted["timeouts"]) == (5, 4, 1)
    assert (counted["success_rate"], counted["timeout_rate"]) == (0.8, 0.2)
    assert (counted["execution_count"], counted["history_size"], counted["active_waiters"]) == (4, 5, 0)
    assert 0.2 <= counted["total_execution_time"] <= time.time() - began_s
    assert counted["average_execution_time"] == pytest.approx(counted["total_execution_time"] / 4)
    assert 0 < counted["average_wait_time"] <= time.time() - began_s
    assert (counted["last_lock_holder"], counted["event_driven_acquisitions"]) == ("n-1", 1)
    assert (counted["event_driven_rate"], counted["polling_rate"], counted["polling_acquisitions"]) == (1.0, 0.0, 0)
    assert began_s - 1 <= counted["last_lock_time"] <= time.time() + 1
    assert counted["pub_sub_available"] is True and counted["pub_sub_subscriptions"] == 1
    history = lock_manager.get_lock_history()
    assert all(set(one) == ATTEMPT for one in history)
    assert [(one["task_name"], one["success"]) for one in history] == [
        ("whisper", True),
        ("whisper", True),
        ("ocr", True),
        ("late-1", False),
        ("next", True),
    ]
    assert [one["lock_key"] for one in history] == [KEY, KEY, KEY, None, KEY]
    assert history[3]["end_time"] - history[3]["start_time"] == pytest.approx(history[3]["duration"], abs=0.01)
    assert lock_manager.get_lock_history(2) == history[-2:]
    health = lock_manager.get_lock_health()
    assert (health["lock_age"], health["last_lock_holder"], health["status"]) == (None, "n-1", "healthy")


def test_health_without_a_daemon_goes_by_the_documented_rules(here: None) -> None:
    """D14: what is critical stays critical."""
    with gpu_lock(task="ocr"):
        for number in range(3):
            assert not too_late(f"late-{number}")
    health = lock_manager.get_lock_health()
    assert health["status"] == "critical"
    assert [issue.partition(":")[0] for issue in health["issues"]] == ["低成功率", "高超时率", "最近成功率低"]
    assert get_gpu_lock_health_summary()["issues_count"] == 3


def test_a_store_that_is_away_is_an_error_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of states goes on, and says why; the configuration is what the environment says."""
    for name, value in environment("unix:///nonexistent/s.sock", "away", QUICK).items():
        monkeypatch.setenv(name, value)
    assert list(get_gpu_lock_status()) == ["error"]
    assert "/nonexistent/s.sock" in get_gpu_lock_health_summary()["error"]
    monkeypatch.setenv("GPU_LOCK_POLL_INTERVAL", "0.5")
    assert get_gpu_lock_config() == {
        "poll_interval": 0.5,
        "max_wait_time": 1800,
        "lock_timeout": 3600,
        "exponential_backoff": True,
        "max_poll_interval": 10,
        "use_event_driven": True,
        "fallback_timeout": 30,
    }


def test_tasks_tell_how_far_they_are(here: None) -> None:
    """A-072 to A-074: from the process that holds the lock and from any other, by the id of the run."""
    manager: TaskHeartbeatManager = get_heartbeat_manager()
    assert manager.check_task_heartbeat("paddleocr_task_123") is None
    assert not manager.start_task_heartbeat("paddleocr_task_123")
    with gpu_lock(task="paddleocr", task_id="paddleocr_task_123"):
        assert manager.start_task_heartbeat("paddleocr_task_123")
        assert manager.update_task_heartbeat("paddleocr_task_123", "running", 45.0, "正在处理第100帧")
        record = manager.check_task_heartbeat("paddleocr_task_123")
        assert record is not None
        assert set(record) == {"task_id", "status", "progress", "message", "last_update", "start_time"}
        assert (record["status"], record["progress"], record["message"]) == ("running", 45.0, "正在处理第100帧")
        assert record["start_time"] <= record["last_update"] <= time.time() + 60
        with ThreadPoolExecutor(1) as other:
            done = other.submit(manager.update_task_heartbeat, "paddleocr_task_123", "completed", 100.0, "all")
            assert done.result()
        assert manager.check_all_heartbeats()["paddleocr_task_123"]["message"] == "completed: all"
        assert manager.stop_task_heartbeat("paddleocr_task_123")
        cleared = manager.check_task_heartbeat("paddleocr_task_123")
        assert cleared is not None and (cleared["progress"], cleared["message"]) == (0.0, "")
        with pytest.raises(ValueError, match="running, completed or failed"):
            manager.update_task_heartbeat("paddleocr_task_123", "lost")  # type: ignore[arg-type]
    assert not manager.update_task_heartbeat("paddleocr_task_123", "running", 50.0, "over")
    assert manager.check_all_heartbeats() == {}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with one GPU."""
    with one_daemon(config=STEADY, simulate=1) as made, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPULOCKD_SOCKET", made.socket)
        yield made
        process.say_goodbye()


def told(daemon: Daemon, path: str) -> Any:
    """What a route says."""
    with urllib.request.urlopen(f"{daemon.url}/api/v1/{path}", timeout=60) as reply:
        return json.load(reply)


def test_the_functions_say_what_the_routes_say(daemon: Daemon) -> None:
    """One truth: a worker, a page and an operator's curl read the same numbers."""
    hold(0.05, task="whisper", task_id="w-1")
    with gpu_lock(task="ocr", task_id="o-1"):
        assert not too_late("late")
        until_blocking(lambda: told(daemon, "monitoring/gpu-lock/health")["total_attempts"] == 3)
        theirs, ours = told(daemon, "monitoring/gpu-lock/health"), get_gpu_lock_health_summary()
        for name in SUMMARY - {"timestamp", "lock_age"}:
            assert ours[name] == pytest.approx(theirs[name]), name
        assert ours["lock_age"] == pytest.approx(theirs["lock_age"], abs=30)
        status, mine = told(daemon, "monitoring/gpu-lock/status"), get_gpu_lock_status()
        for name in ("lock_key", "is_locked", "lock_holder", "lock_type"):
            assert mine[name] == status[name]
        assert [one["task_name"] for one in mine["recent_history"]] == [
            one["task_name"] for one in status["recent_history"]
        ]
        # The manager of another process tells how far it is, as YiVideo's gateway does.
        assert get_heartbeat_manager().update_task_heartbeat("o-1", "running", 10.0, "frame 10")
        until_blocking(lambda: told(daemon, "monitoring/heartbeat/all")["active_tasks"]["o-1"]["message"] == "frame 10")


def test_a_live_change_counts_from_the_next_request_on(daemon: Daemon) -> None:
    """B-301 to B-308: what `get_gpu_lock_config` says is what the next request goes by."""
    body = json.dumps({"poll_interval": 1.0, "max_wait_time": 0.2}).encode()
    request = urllib.request.Request(f"{daemon.url}/api/v1/config/gpu-lock", body, method="POST")
    request.add_header("Authorization", f"Bearer {daemon.token}")
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert reply.status == 200
    until_blocking(lambda: get_gpu_lock_config()["max_wait_time"] == 0.2)
    assert get_gpu_lock_config()["poll_interval"] == 1
    with gpu_lock(task="ocr"), ThreadPoolExecutor(1) as other:
        busy = other.submit(lock_manager.acquire_lock_with_smart_polling, "late", KEY, get_gpu_lock_config())
        assert busy.result() is False
