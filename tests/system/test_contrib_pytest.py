"""The pytest plugin under real pytest and pytest-xdist, against a real daemon."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import Started, clean_env, leases, one_daemon

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

TWO_AT_ONCE = """
import os, time, pytest
from pathlib import Path

folder = Path(os.environ["TEST_FOLDER"])

@pytest.mark.parametrize("number", range(4))
def test_it(gpu, number):
    mine = folder / f"on-{gpu.gpu.index}"
    mine.mkdir()  # fails while another is on the same card
    (folder / f"{os.environ.get('PYTEST_XDIST_WORKER', 'only')} {gpu.gpu.index} {gpu.token}").touch()
    time.sleep(0.05)
    mine.rmdir()
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Two simulated GPUs. A pytest whose GPU is taken is not ended where it is slow to leave."""
    with one_daemon(config={"settle": {"grace": 60}}) as running:
        yield running


def run_pytest(
    folder: Path, text: str, *options: str, daemon: Daemon | None, ini: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run pytest over one file, as a user would; it ends within a minute."""
    (folder / "test_it.py").write_text(textwrap.dedent(text))
    (folder / "pytest.ini").write_text(
        f"[pytest]\naddopts = -p xdist -p gpulockd.contrib.pytest -ra\n{textwrap.dedent(ini)}"
    )
    socket = daemon.socket if daemon is not None else str(folder / "nowhere/api.sock")
    env = clean_env(GPULOCKD_SOCKET=socket, TEST_FOLDER=str(folder), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        # This test may itself be one of a worker's.
        env={name: value for name, value in env.items() if not name.startswith("PYTEST_XDIST_")},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )


def pairs(folder: Path) -> set[tuple[str, str, str]]:
    """Which worker had which GPU under which token."""
    names = [path.name.split() for path in folder.iterdir()]
    return {(name[0], name[1], name[2]) for name in names if len(name) == 3}


def test_each_worker_has_a_gpu_of_its_own(daemon: Daemon, tmp_path: Path) -> None:
    """One lease for all tests of a worker, and never two workers on one card."""
    done = run_pytest(tmp_path, TWO_AT_ONCE, "-n", "2", daemon=daemon)
    assert done.returncode == 0, done.stdout
    had = pairs(tmp_path)
    assert {worker for worker, _, _ in had} == {"gw0", "gw1"}
    assert len(had) == 2 and {gpu for _, gpu, _ in had} == {"0", "1"}
    until_blocking(lambda: not leases(daemon, f"pytest {tmp_path.name}"))


def test_more_workers_than_gpus_take_turns(daemon: Daemon, tmp_path: Path) -> None:
    """A worker that kept its GPU to the end would wait for the one that waits for it."""
    done = run_pytest(tmp_path, TWO_AT_ONCE, "-n", "3", "--dist", "each", daemon=daemon)
    assert done.returncode == 0, done.stdout
    assert {worker for worker, _, _ in pairs(tmp_path)} == {"gw0", "gw1", "gw2"}


def test_without_a_daemon_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    """A laptop: the other tests run, and the line says what to start."""
    done = run_pytest(tmp_path, "def test_gpu(gpu): ...\ndef test_cpu(): ...\n", daemon=None)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert re.search(r"SKIPPED.*no GPU for the tests.*gpulockd serve", done.stdout)


def test_without_a_daemon_tests_fail_where_they_must_not_be_skipped(tmp_path: Path) -> None:
    """A build server: green because nothing ran is a lie."""
    done = run_pytest(tmp_path, "def test_gpu(gpu): ...\n", "--gpu-missing=fail", daemon=None)
    assert done.returncode == 1
    assert "no GPU for the tests" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_busy_pool_fails_with_who_holds_it(daemon: Daemon, tmp_path: Path) -> None:
    """Somebody trains on both: the message says who, and what to do."""
    holder = Started(daemon, tmp_path, "run", "-q", "-n", "2", "--task", "training", "--", "sleep", "300")
    try:
        until_blocking(lambda: leases(daemon, "training"))
        done = run_pytest(tmp_path, "def test_gpu(gpu): ...\n", daemon=daemon, ini="gpu_wait = 200ms")
    finally:
        holder.close()
    assert done.returncode == 1
    assert "held by training" in done.stdout
    assert "--gpu-wait" in done.stdout
    until_blocking(lambda: not leases(daemon, "training"))


def test_code_under_test_joins_the_workers_lease(daemon: Daemon, tmp_path: Path) -> None:
    """The program that is tested asks for a GPU itself: in the test, in a task, and in a process of its own."""
    text = """
    import asyncio, subprocess, sys
    from gpulockd import gpu_lock

    def test_sync(gpu):
        with gpu_lock() as lease:
            assert lease.token == gpu.token

    def test_task(gpu):
        async def work():
            async with gpu_lock() as lease:
                assert lease.token == gpu.token
        asyncio.run(work())

    def test_process(gpu):
        text = "from gpulockd import gpu_lock\\nwith gpu_lock() as lease: print(lease.token)"
        assert int(subprocess.check_output([sys.executable, "-c", text])) == gpu.token
    """
    done = run_pytest(tmp_path, text, daemon=daemon, ini="gpu_wait = 20")
    assert done.returncode == 0, done.stdout


def test_a_gpu_that_was_taken_away_fails_the_next_tests(daemon: Daemon, tmp_path: Path) -> None:
    """They must not run on a card that somebody else has by now."""
    text = """
    import subprocess, sys

    def test_first(gpu):
        subprocess.run([sys.executable, "-m", "gpulockd", "release", str(gpu.gpu.index)], check=True)
        assert gpu.lost.wait_blocking(30)

    def test_second(gpu):
        raise AssertionError("it ran")
    """
    done = run_pytest(tmp_path, text, daemon=daemon)
    assert done.returncode == 1
    assert "the GPU of this test worker was taken away" in done.stdout
    assert "it ran" not in done.stdout.replace('raise AssertionError("it ran")', "")
