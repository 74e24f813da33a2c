"""docs/python.md: its programs run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.system.commands import ROOT, clean_env, one_daemon

PROGRAMS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Two simulated GPUs."""
    with one_daemon() as running:
        yield running


@pytest.mark.parametrize("program", PROGRAMS, ids=["sync", "async", "events"])
def test_a_program_of_the_page_runs(program: str, daemon: Daemon, tmp_path: Path) -> None:
    """What is copied from the page must work as it is."""
    (tmp_path / "it.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "it.py"],
        env=clean_env(GPULOCKD_SOCKET=daemon.socket),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
