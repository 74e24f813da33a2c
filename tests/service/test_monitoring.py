"""The documented routes of the monitoring, held against what a real daemon and its programs have really done.

One daemon lives through a story of grants, waits, time-outs, deaths and limits; each test reads what it says of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gpulockd import GpuLockTimeout, LeaseLost, gpu_lock
from tests.daemons import STEADY, Daemon, Wire, eventually, running_daemon

MONITORING = "/api/v1/monitoring"
CONFIG = STEADY | {"gpu_lock_monitor": {"monitor_interval": 0.5}}

HEALTH = {
    "overall_status": str,
    "issues_count": int,
    "total_attempts": int,
    "success_rate": float,
    "timeout_rate": float,
    "average_execution_time": float,
    "recent_success_rate": float,
    "timestamp": float,
}
HOLDER = """
import sys, time
from gpulockd import gpu_lock
with gpu_lock("gpu_lock:0", task="doomed", task_id="doomed-1") as lease:
    lease.progress(30.0, "half dead")
    print("in", flush=True)
    time.sleep(600)
"""


@pytest.fixture
async def daemon(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    """A daemon with two simulated GPUs that checks twice a second."""
    async with running_daemon(config=CONFIG) as made:
        monkeypatch.setenv("GPULOCKD_SOCKET", made.socket)
        yield made


async def told(daemon: Daemon, path: str) -> Any:
    """What a documented route says."""
    reply = await daemon.get(f"{MONITORING}/{path}")
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/json"
    return reply.json


async def held(daemon: Daemon, **wish: Any) -> Wire:
    """A lease that a connection holds."""
    wire = await daemon.open("POST", "/api/v1/leases", wish)
    await wire.until("granted")
    return wire


async def timed_out(task: str) -> None:
    """An attempt on GPU 0 that gets nothing."""
    with pytest.raises(GpuLockTimeout):
        async with gpu_lock("gpu_lock:0", task=task, max_wait_time=0.1):
            pass


async def short_hold(seconds: float, **wish: Any) -> None:
    """A hold of GPU 0."""
    async with gpu_lock("gpu_lock:0", **wish):
        await asyncio.sleep(seconds)


async def test_a_system_without_attempts_is_healthy(daemon: Daemon) -> None:
    """Rates of nothing must alarm nobody: success 1.0, timeouts 0.0."""
    health = await told(daemon, "gpu-lock/health")
    assert set(health) == {*HEALTH, "lock_holder", "lock_age"}
    assert all(isinstance(health[name], kind) for name, kind in HEALTH.items())
    assert (health["overall_status"], health["issues_count"]) == ("healthy", 0)
    assert (health["total_attempts"], health["success_rate"], health["timeout_rate"]) == (0, 1.0, 0.0)
    assert (health["recent_success_rate"], health["average_execution_time"]) == (1.0, 0.0)
    assert (health["lock_holder"], health["lock_age"]) == (None, None)
    assert abs(health["timestamp"] - time.time()) < 60
    beats = await told(daemon, "heartbeat/all")
    assert (beats["active_tasks"], beats["dead_tasks"], beats["orphaned_tasks"]) == ({}, [], [])
    assert beats["statistics"] == {"total_tasks": 0, "active_tasks": 0, "dead_tasks": 0, "heartbeat_failures": 0}
    status = await told(daemon, "gpu-lock/status")
    assert (status["is_locked"], status["lock_type"], status["lock_holder"], status["ttl_seconds"]) == (
        False,
        "free",
        None,
        None,
    )
    assert status["recent_history"] == []
    assert await told(daemon, "timeout/config") == {"warning": 1800.0, "soft_timeout": 3600.0, "hard_timeout": 7200.0}
    assert (await daemon.get(f"{MONITORING}/gpu-lock/health?lock_key=a%20b")).status == 422


async def test_a_story_is_told_as_it_was(daemon: Daemon) -> None:
    """Grants, waits, time-outs, a death and an operator: every number is known in advance, and each answer has it."""
    began_s = time.time()
    for _ in range(3):  # three holds of a tenth of a second: the holds and forecasts of `whisper`
        await short_hold(0.1, task="whisper", task_id="w-17")
    holding = await held(daemon, task="ocr", gpus=[0], task_id="paddleocr_task_123")
    await timed_out("late-1")
    await timed_out("late-2")

    # While it is held.
    health = await told(daemon, "gpu-lock/health")
    assert (health["total_attempts"], health["lock_holder"]) == (6, "paddleocr_task_123")
    assert health["success_rate"] == pytest.approx(4 / 6)
    assert health["timeout_rate"] == pytest.approx(2 / 6)
    assert health["recent_success_rate"] == pytest.approx(4 / 6)
    assert 0.09 <= health["average_execution_time"] < 60
    assert 0.2 <= health["lock_age"] <= time.time() - began_s + 1
    other = await told(daemon, "gpu-lock/health?lock_key=gpu_lock:1")
    assert (other["lock_holder"], other["total_attempts"]) == (None, 6)

    status = await told(daemon, "gpu-lock/status")
    assert (status["lock_key"], status["is_locked"], status["lock_type"]) == ("gpu_lock:0", True, "active")
    assert 3500 < status["ttl_seconds"] <= 3600
    assert [(one["task_name"], one["success"]) for one in status["recent_history"]] == [
        ("whisper", True),
        ("whisper", True),
        ("ocr", True),
        ("late-1", False),
        ("late-2", False),
    ]
    assert 0 < status["recent_history"][-1]["duration"] < 60
    assert (status["statistics"]["timeouts"], status["statistics"]["execution_count"]) == (2, 3)
    assert status["health"]["last_lock_holder"] == "paddleocr_task_123"

    # A waiter follows, and its wait and expected start are known: `ocr` is not, so it cannot be said.
    waiting = await daemon.open("POST", "/api/v1/leases", {"task": "whisper", "gpus": [0]})
    await waiting.until("waiting")
    queue = (await daemon.get("/api/v1/queue")).json["queue"]
    assert [(one["task"], one["expected_start"]) for one in queue] == [("whisper", None)]

    # The operator takes it, with a body as plain curl sends it.
    form = {"content-type": "application/x-www-form-urlencoded"}
    raw = b'{"lock_key": "gpu_lock:0"}'
    taken = await daemon.ask("POST", f"{MONITORING}/release-lock", raw=raw, headers=form)
    assert taken.json == {
        "success": True,
        "message": "took gpu_lock:0 from paddleocr_task_123",
        "lock_key": "gpu_lock:0",
        "task_name": "ocr",
    }
    assert (await holding.until("lost"))["reason"] == "operator"
    await waiting.until("granted")  # the next one has it now, and nobody touched it
    lines = (await daemon.ask("GET", "/api/v1/config/audit")).json["audit"]
    assert any(line["what"] == "revoked" and "paddleocr_task_123" in line["text"] for line in lines)
    leases = (await daemon.get("/api/v1/leases")).json["leases"]
    assert [(one["task"], one["expected_end"] is not None) for one in leases] in (
        [("whisper", True)],
        [("whisper", False)],  # it has been held longer than ever before
    )
    await waiting.aclose()
    await eventually(lambda: _is_free(daemon))

    # What was, afterwards.
    past = (await daemon.get("/api/v1/history?gpu=0&since=5m")).json
    holds = [(one["task"], one["how"], one["reason"]) for one in reversed(past["holds"])]
    assert holds[:4] == [("whisper", "released", "released")] * 3 + [("ocr", "revoked", "operator")]
    assert [one["task"] for one in past["holds"] if one["how"] == "revoked"] == ["ocr"]
    every = (await daemon.get("/api/v1/history?since=5m")).json["waits"]
    assert sorted(one["outcome"] for one in every) == ["acquired", "timed_out", "timed_out"]
    assert all(one["ended"] - one["began"] == pytest.approx(one["waited_s"], abs=0.01) for one in every)
    assert (await daemon.get("/api/v1/history?task=late-1")).json["holds"] == []
    assert len((await daemon.get("/api/v1/history?length=1")).json["holds"]) == 1
    assert (await daemon.get("/api/v1/history?since=soon")).status == 422

    # By task; the recorder writes once a second.
    async def counted() -> bool:
        tasks = (await told(daemon, "statistics"))["tasks"]
        return "late-2" in tasks and tasks.get("whisper", {"attempts": 0})["attempts"] == 4

    await eventually(counted)
    whole = await told(daemon, "statistics")
    assert (whole["tasks"]["late-1"]["timeouts"], whole["tasks"]["ocr"]["lost"]) == (1, 1)
    assert 0.08 <= whole["tasks"]["whisper"]["holds"]["p50_s"] < 60  # a bucket is 20 % wide
    assert whole["gpu_lock"]["total_attempts"] == 7
    assert (whole["deadlock_detected"], whole["suspicions"]) == (False, [])
    assert whole["waits"]["count"] == 5
    assert set(whole) >= {"timestamp", "gpu_lock", "monitor", "heartbeat", "timeout"}
    ours = (await daemon.get("/api/v1/statistics?since=10m&by=minute")).json
    assert (ours["window"]["attempts"], ours["window"]["timed_out"]) == (7, 2)
    assert sum(span["counts"]["acquired"] for span in ours["spans"]) == 5
    assert ours["waits"]["buckets"][-1]["count"] == 5
    assert set((await daemon.get("/api/v1/statistics?task=ocr")).json["tasks"]) == {"ocr"}
    assert (await daemon.get("/api/v1/statistics?by=year")).status == 422


async def _is_free(daemon: Daemon) -> bool:
    return not (await told(daemon, "gpu-lock/status"))["is_locked"]


async def test_what_nobody_holds_or_another_holds_is_not_released(daemon: Daemon) -> None:
    """A stale button must take nothing from anybody, and says so in the documented words."""
    nothing = await daemon.ask("POST", f"{MONITORING}/lock/release", {"lock_key": "gpu_lock:0"})
    assert (nothing.status, nothing.json["success"], nothing.json["task_name"]) == (200, False, "")
    holding = await held(daemon, task="ocr", gpus=[0])
    another = {"lock_key": "gpu_lock:0", "task_name": "whisper"}
    other = await daemon.ask("POST", f"{MONITORING}/lock/release", another)
    assert (other.json["success"], other.json["task_name"]) == (False, "ocr")
    assert not await _is_free(daemon)
    refused = await daemon.ask("POST", f"{MONITORING}/release-lock", {"lock_key": "gpu_lock:0"}, tcp=True)
    assert refused.status == 401
    assert (await daemon.ask("POST", f"{MONITORING}/release-lock", {})).status == 422
    bearer = {"authorization": f"Bearer {daemon.token}"}
    taken = await daemon.ask("POST", f"{MONITORING}/lock/release", {"lock_key": "0"}, tcp=True, headers=bearer)
    assert (taken.json["success"], taken.json["lock_key"]) == (True, "gpu_lock:0")
    await holding.until("lost")
    sharing = [await held(daemon, task=task, gpus=[0], memory="1GiB") for task in ("a", "b")]
    shared = await daemon.ask("POST", f"{MONITORING}/release-lock", {"lock_key": "gpu_lock:0"})
    assert (shared.status, shared.json["kind"]) == (409, "ambiguous")
    for wire in sharing:
        await wire.aclose()


async def test_heartbeats_tell_what_tasks_say_and_who_died(daemon: Daemon) -> None:
    """Progress as the task said it; after a kill -9 it is dead, its GPU free, and a recovery was counted."""
    environment = os.environ | {"GPULOCKD_SOCKET": daemon.socket}
    doomed = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, env=environment)
    try:
        assert doomed.stdout is not None
        assert await asyncio.to_thread(doomed.stdout.readline) == b"in\n"
        beats = await told(daemon, "heartbeat/all")
        beat = beats["active_tasks"]["doomed-1"]
        assert (beat["status"], beat["progress"], beat["message"]) == ("running", 30.0, "half dead")
        assert abs(beat["last_heartbeat"] - time.time()) < 30
        assert beats["statistics"] == {"total_tasks": 1, "active_tasks": 1, "dead_tasks": 0, "heartbeat_failures": 0}
        one = await told(daemon, "heartbeat/task/doomed-1")
        assert (one["status"], one["is_running"], one["heartbeat_exists"]) == ("running", True, True)
        assert set(one["heartbeat_data"]) == {
            "task_id",
            "status",
            "progress",
            "message",
            "start_time",
            "last_update",
        }
        assert one["start_time"] <= one["last_update"]
        doomed.send_signal(signal.SIGKILL)
    finally:
        doomed.kill()
        doomed.wait()
        if doomed.stdout is not None:
            doomed.stdout.close()

    async def is_dead() -> bool:
        return bool((await told(daemon, "heartbeat/all"))["dead_tasks"] == ["doomed-1"])

    await eventually(is_dead)
    await eventually(lambda: _is_free(daemon))
    gone = await told(daemon, "heartbeat/task/doomed-1")
    assert (gone["status"], gone["is_running"], gone["message"]) == ("failed", False, "its process died")

    async def is_counted() -> bool:
        return bool((await told(daemon, "monitor/status"))["monitor_stats"]["successful_recoveries"] == 1)

    await eventually(is_counted)
    monitor = await told(daemon, "monitor/status")
    assert abs(monitor["monitor_status"]["last_recovery_time"] - time.time()) < 60
    # It is tried again under the same name, and stopping clears its record.
    async with gpu_lock("gpu_lock:0", task="doomed", task_id="doomed-1") as lease:
        await lease.progress(100.0, "done")
        beats = await told(daemon, "heartbeat/all")
        assert (list(beats["active_tasks"]), beats["dead_tasks"]) == (["doomed-1"], [])
    async with gpu_lock("gpu_lock:0", task_id="other"):
        pass
    assert (await told(daemon, "heartbeat/task/other"))["status"] == "not_found"


async def test_limits_are_told_with_their_reasons(daemon: Daemon) -> None:
    """Warning, soft and hard limit each once, and the holder hears why it lost the GPU."""
    with pytest.raises(LeaseLost) as lost:
        await short_hold(60, task="slow", task_id="s-1", warning=0.3, soft_timeout=1.6, hard_timeout=3.0)
    assert lost.value.reason == "hard_timeout"
    assert "longer than its hard limit" in str(lost.value)

    async def recovered() -> bool:
        return bool((await told(daemon, "timeout/status"))["timeout_stats"]["successful_actions"] == 3)

    await eventually(recovered, 30)
    limits = await told(daemon, "timeout/status")
    stats = limits["timeout_stats"]
    assert (stats["warning_actions"], stats["soft_timeout_actions"], stats["hard_timeout_actions"]) == (1, 1, 1)
    assert stats["failed_actions"] == 0
    assert [(one["level"], one["task_name"], one["success"]) for one in limits["action_history"]] == [
        ("warning", "s-1", True),
        ("soft", "s-1", True),
        ("hard", "s-1", True),
    ]
    assert all(one["last_executed"] is not None for one in limits["configured_actions"])
    assert [one["threshold"] for one in limits["configured_actions"]] == [1800.0, 3600.0, 7200.0]
    monitor = await told(daemon, "monitor/status")
    counts = monitor["monitor_stats"]
    assert (counts["warning_count"], counts["soft_timeout_count"], counts["hard_timeout_count"]) == (1, 1, 1)
    assert counts["successful_recoveries"] == 1
    assert monitor["monitor_status"]["status"] == "running" and monitor["is_running"] is True
    assert monitor["uptime"] > 0
    assert counts["total_checks"] == sum(
        monitor["monitor_status"][name] for name in ("healthy_checks", "unhealthy_checks")
    )
    assert monitor["config"]["timeout_levels"]["hard_timeout"] == 7200.0
    past = (await daemon.get("/api/v1/history?task=slow")).json["holds"]
    assert [(one["how"], one["reason"]) for one in past] == [("revoked", "hard_timeout")]


async def test_expectations_come_from_the_holds_of_the_task(daemon: Daemon) -> None:
    """Who waits is told when it may begin, once the holder's task is known."""
    longest_s = 0.0
    for _ in range(3):
        began_s = time.monotonic()
        await short_hold(1.0, task="whisper")
        longest_s = max(longest_s, time.monotonic() - began_s)
    expected_s = 1.5 * longest_s  # a bucket is 20 % wide

    async def known() -> bool:
        task = (await told(daemon, "statistics"))["tasks"].get("whisper")
        return bool(task and task["holds"]["count"] == 3)

    await eventually(known)
    holding = await held(daemon, task="whisper", gpus=[0])
    waiting = await daemon.open("POST", "/api/v1/leases", {"task": "next", "gpus": [0]})
    await waiting.until("waiting")
    lease = (await daemon.get("/api/v1/leases")).json["leases"][0]
    ticket = (await daemon.get("/api/v1/queue")).json["queue"][0]
    if lease["held_s"] < 0.9:
        assert 0 < lease["expected_end"]["middle_s"] <= expected_s
        assert ticket["expected_start"] is None or 0 < ticket["expected_start"]["middle_s"] <= expected_s
    await waiting.aclose()
    await holding.aclose()
