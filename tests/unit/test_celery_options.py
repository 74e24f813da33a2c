"""What a Celery task says of its GPUs is checked where it is written, not in a worker at night."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

pytest.importorskip("celery")

from gpulockd.contrib.celery import OPTIONS_HEADER, SINCE_HEADER, GpuTask, since_of
from gpulockd.contrib.celery_options import Options, progress_of
from gpulockd.errors import ConfigError


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"memroy": "6GiB"}, "did you mean 'memory'"),
        ({"bogus": 1}, "known are"),
        ({"mode": "later"}, "'block' or 'retry'"),
        ({"priority": 1000}, "-100 to 100"),
        ({"memory": "six"}, "memory"),
        ({"countdown": "1h"}, "countdown"),
        ({"stay": 0}, "stay"),
        ({"gpus": [], "lock_key": "gpu_lock:0"}, "either a lock key or gpus"),
        ({"max_wait_time": "soon"}, "max_wait_time"),
        ("gpu_lock:0", "arguments of gpu_lock"),
    ],
)
def test_a_wrong_option_is_refused_where_the_task_is_defined(said: Any, told: str) -> None:
    """The text names the option and the cure."""
    with pytest.raises(ConfigError, match=told):
        type("wrong", (GpuTask,), {"gpu": said, "run": lambda self: None})


def test_options_are_those_of_the_lock_and_three_of_their_own() -> None:
    """Whoever knows `gpu_lock` knows what to write."""
    options = Options.of({"memory": "6GiB", "priority": 5, "mode": "retry", "stay": "1s", "countdown": "10s"})
    assert (options.mode, options.stay_s, options.countdown_s) == ("retry", 1.0, 10.0)
    assert options.lock(task="asr").job.task == "asr"
    assert options.lock().priority == 5


@pytest.mark.parametrize(
    ("meta", "percent", "message"),
    [
        ({"current": 9, "total": 20, "message": "segment 9"}, 45.0, "segment 9"),
        ({"percent": 12.5}, 12.5, ""),
        ({"progress": 140, "status": "late"}, 100.0, "late"),
        ({"current": 9, "total": 0}, None, ""),
        ({"percent": True}, None, ""),
        ({"percent": float("nan")}, None, ""),
        ("text", None, ""),
        (None, None, ""),
    ],
)
def test_progress_is_read_as_people_write_it(meta: object, percent: float | None, message: str) -> None:
    """Nothing in a task's state may end the task that wrote it."""
    assert progress_of(meta) == (percent, message)


def test_celery_is_loaded_by_its_own_module_alone() -> None:
    """Most programs that take a lock have no Celery, and need not load it if they have."""
    code = (
        "import sys, gpulockd; from gpulockd import gpu_lock, current_lease; import gpulockd.client.frameworks\n"
        "gpu_lock(); sys.exit('celery' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("said", ["abc", "inf", "nan", float("inf"), float("nan"), 10**400, [1], None, "", 1e300])
def test_a_time_that_no_clock_has_is_now(said: Any) -> None:
    """Anybody may send a message; a header must not end a task or shorten its wait."""
    assert abs(since_of({SINCE_HEADER: said}) - time.time()) < 60


@pytest.mark.parametrize("said", ["gpu_lock:0", 3, ["priority"]])
def test_a_message_whose_options_are_none_is_refused_with_the_cure(said: Any) -> None:
    """Whoever reads the worker's log learns what to send; a TypeError would look like a bug of the task."""

    class Sent(GpuTask):
        def _gpu_headers(self) -> Any:
            return {OPTIONS_HEADER: said}

    with pytest.raises(ConfigError, match="send options there"):
        Sent()._gpu_options()
    with pytest.raises(ConfigError, match="give options"):
        Sent().apply_async(gpu=said)


def test_since_when_it_waits_is_what_the_message_says() -> None:
    """The wait goes on over its retries."""
    then_s = time.time() - 500
    assert (since_of({SINCE_HEADER: str(then_s)}), since_of({SINCE_HEADER: then_s})) == (then_s, then_s)
    assert since_of({SINCE_HEADER: -5}) == 0.0
