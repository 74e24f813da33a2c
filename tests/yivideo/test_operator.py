"""What the source documents tell an operator to type, typed: curl against the port, as it stands there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import ROOT, STEADY, Daemon
from tests.states import until_blocking
from tests.system.commands import clean_env, one_daemon

DOCUMENTED = "http://localhost:8788"
MONITORING = f"{DOCUMENTED}/api/v1/monitoring"
RELEASE = f"""curl -X POST {MONITORING}/release-lock \\
  -H "Content-Type: application/json" \\
  -d '{{"lock_key": "gpu_lock:0"}}'"""
HOLDER = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
from gpulockd import LeaseLost
from gpulockd.compat.yivideo import TaskHeartbeatManager, gpu_lock
with gpu_lock(task="paddleocr", task_id="paddleocr_task_123") as lease:
    TaskHeartbeatManager().update_task_heartbeat("paddleocr_task_123", "running", 45.0, "正在处理第100帧")
    print("in", flush=True)
    lease.lost.wait_blocking(60)
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with one GPU."""
    with one_daemon(config=STEADY, simulate=1) as made:
        yield made


def typed(daemon: Daemon, line: str) -> Any:
    """What a line says in a shell, its port put in the place of the documented one."""
    bin = str(Path(sys.executable).parent)
    env = clean_env(GPULOCKD_SOCKET=daemon.socket, PATH=f"{bin}:{os.environ['PATH']}")
    line = line.replace(DOCUMENTED, daemon.url).replace("curl ", "curl -sS ", 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_documented_flows_show_and_free_a_lock(daemon: Daemon) -> None:
    """A-099, A-116 to A-118: health, heartbeats, statistics, and taking a lock that nobody gives back."""
    env = clean_env(GPULOCKD_SOCKET=daemon.socket, PYTHONIOENCODING="utf-8")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
    try:
        assert holder.stdout is not None
        said = [holder.stdout.readline().strip()]
        while said[-1] not in ("in", ""):
            said.append(holder.stdout.readline().strip())
        assert "INFO:locks:任务 paddleocr 成功获取GPU锁" in said
        health = typed(daemon, f"curl {MONITORING}/gpu-lock/health")
        assert (health["overall_status"], health["lock_holder"]) == ("healthy", "paddleocr_task_123")
        beats = typed(daemon, f"curl {MONITORING}/heartbeat/all")
        beat = beats["active_tasks"]["paddleocr_task_123"]
        assert (beat["status"], beat["progress"], beat["message"]) == ("running", 45.0, "正在处理第100帧")
        assert typed(daemon, f"curl {MONITORING}/statistics")["gpu_lock"]["overall_status"] == "healthy"

        # Who may not write is told what to type instead.
        refused = typed(daemon, RELEASE)
        assert refused["status"] == 401 and "Authorization: Bearer" in refused["hint"]
        bearer = RELEASE.replace('-H "Content', '-H "Authorization: Bearer $(gpulockd token)" -H "Content')
        taken = typed(daemon, bearer)
        assert (taken["success"], taken["lock_key"], taken["task_name"]) == (True, "gpu_lock:0", "paddleocr")
        rest, _ = holder.communicate(timeout=60)
        assert holder.returncode == 1 and "INFO:locks:任务 paddleocr 释放GPU锁" not in rest
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    until_blocking(lambda: typed(daemon, f"curl {MONITORING}/gpu-lock/health")["lock_holder"] is None)
    assert typed(daemon, bearer)["success"] is False
