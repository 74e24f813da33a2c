"""`gpulockd bench config` as a user runs it: its verdict, its exit code, and that the daemon remembers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import call, clean_env, command, lives, one_daemon

BENCH = ("bench", "config", "--rounds", "1", "--gpus", "2")
WITHIN_S = 180.0
AGAIN = 2
"""A trial compares what it has measured: where the machine is busy only while the candidate is tried, it is worse."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def careful() -> Iterator[Daemon]:
    """A daemon that takes only changes that a trial has validated."""
    with one_daemon(config={"config": {"require_validation": True}}) as daemon:
        yield daemon


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose sockets have paths that the kernel takes."""
    with tempfile.TemporaryDirectory(prefix="gld-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_change_is_taken_once_a_trial_has_validated_it(careful: Daemon) -> None:
    """B-101, B-102: first the benchmark, then the change. It is measured against what is live."""
    candidate = careful.runtime.parent / "candidate.yml"
    candidate.write_text("gpu_lock: {max_wait_time: 10m}\n")
    refused = call(careful, "config", "apply", str(candidate))
    assert refused.returncode == 1, refused.stderr
    assert "valid" in refused.stderr
    trial = (*BENCH, "--candidate", str(candidate))
    done = call(careful, *trial, within_s=WITHIN_S)
    for _ in range(AGAIN):
        if done.returncode:
            done = call(careful, *trial, within_s=WITHIN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not apply" in done.stdout
    assert "mode: events" in done.stdout
    assert "recorded for" in done.stderr
    taken = call(careful, "config", "apply", str(candidate))
    assert taken.returncode == 0, taken.stderr
    assert call(careful, "config", "get", "gpu_lock.max_wait_time").stdout.strip() == "600"


def test_a_candidate_under_which_tasks_time_out_is_not_validated(tmp_path: Path) -> None:
    """B-105, B-108: exit code 1, and JSON that says which limits were missed."""
    candidate = tmp_path / "bad.yml"
    candidate.write_text("gpu_lock: {max_wait_time: 50ms}\n")
    done = call(
        None, *BENCH, "--baseline", "defaults", "--candidate", str(candidate), "--json",
        within_s=WITHIN_S, GPULOCKD_SOCKET=str(tmp_path / "none.sock"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    verdict = json.loads(done.stdout)
    outcomes = {criterion["name"]: criterion["outcome"] for criterion in verdict["criteria"]}
    assert (outcomes["success"], outcomes["timeouts"]) == ("failed", "failed")
    assert verdict["passed"] is False
    assert verdict["mode"] == "events"
    assert verdict["results"]["timeout_rate"] > 0.05
    assert verdict["baseline"]["success_rate"] == 1.0
    assert "not recorded" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("bench",), "bench: what?"),
        (("bench", "config"), "--candidate"),
        (("bench", "config", "--candidate", "optimized"), "'live'"),
        (("bench", "config", "--baseline", "defaults", "--candidate", "optimised"), "did you mean 'optimized'"),
        (("bench", "config", "--baseline", "defaults", "--candidate", "defaults"), "say the same"),
        (("bench", "config", "--baseline", "defaults", "--candidate", "optimized", "--gpus", "0"), "at least 1"),
    ],
)
def test_wrong_use_is_told_at_once(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    """Exit code 2 before anything is started."""
    done = call(None, *words, GPULOCKD_SOCKET=str(tmp_path / "none.sock"))
    assert done.returncode == 2
    assert says in done.stderr
    assert "hint:" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_trial_that_is_stopped_leaves_nothing_behind(number: signal.Signals, short: Path) -> None:
    """Daemons, stores, programs and folders end with it."""
    words = command("bench", "config", "--baseline", "defaults", "--candidate", "optimized", "--rounds", "50")
    env = clean_env(GPULOCKD_SOCKET=str(short / "none.sock"), TMPDIR=str(short))
    trial = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert trial.stderr is not None
    try:
        for line in trial.stderr:
            if "round 1" in line:
                break
        family = psutil.Process(trial.pid)
        until_blocking(lambda: len(family.children(recursive=True)) >= 8)  # two daemons and six programs
        started = family.children(recursive=True)
        trial.send_signal(number)
        assert trial.wait(90) == 130
        until_blocking(lambda: not any(process.is_running() and lives(process.pid) for process in started))
        until_blocking(lambda: os.listdir(short) == [])
    finally:
        trial.kill()
        trial.wait()
        trial.stderr.close()
