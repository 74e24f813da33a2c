"""Many jobs from a shell loop, as people start them: all run, and never two on one card."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import ask, clean_env, command, one_daemon

JOBS, CARDS = 60, 4
"""`python -m bench jobs` starts 500."""

JOB = """
exec 9>"$WITNESS/$CUDA_VISIBLE_DEVICES"
flock --nonblock 9 || echo "two on $CUDA_VISIBLE_DEVICES" >> "$WITNESS/overlaps"
sleep 0.02
echo "$GPULOCKD_TOKEN" >> "$WITNESS/done"
"""
"""What a job does on its card is a lock of the kernel on a file, which no ledger can talk away."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with four cards."""
    with one_daemon(simulate=CARDS) as running:
        yield running


def test_a_shell_loop_of_jobs_runs_all_and_never_two_on_one_card(daemon: Daemon, tmp_path: Path) -> None:
    """The whole promise, as a user would try it."""
    job = tmp_path / "job.sh"
    job.write_text(JOB)
    run = " ".join(command("run", "-q", "--", "sh", str(job)))
    begin = f'for i in $(seq {JOBS}); do {run} & jobs="$jobs $!"; done'
    loop = f"{begin}; for j in $jobs; do wait $j || echo failed $?; done"
    env = clean_env(GPULOCKD_SOCKET=daemon.socket, WITNESS=str(tmp_path))
    done = subprocess.run(["bash", "-c", loop], env=env, capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.stderr) == ("", "")
    tokens = (tmp_path / "done").read_text().split()
    assert (len(tokens), len(set(tokens))) == (JOBS, JOBS)
    assert not (tmp_path / "overlaps").exists()
    until_blocking(lambda: not ask(daemon, "leases"))
