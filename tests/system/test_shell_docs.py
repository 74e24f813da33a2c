"""Every example of docs/shell.md, pasted into a shell."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import ROOT, ask, clean_env, command, one_daemon

EXAMPLES = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/shell.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with two simulated GPUs."""
    with one_daemon() as running:
        yield running


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.splitlines()[0][:40] for example in EXAMPLES])
def test_an_example_works_when_it_is_pasted(daemon: Daemon, tmp_path: Path, example: str) -> None:
    """Who copies it has nothing else."""
    program = tmp_path / "gpulockd"
    program.write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
    program.chmod(0o755)
    env = clean_env(GPULOCKD_SOCKET=daemon.socket, PATH=f"{tmp_path}:{os.environ['PATH']}", TMPDIR=str(tmp_path))
    pasted = f"set -e\n{example.replace('/tmp/', f'{tmp_path}/')}\ntrue\n"
    done = subprocess.run(["bash"], input=pasted, env=env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert "hint:" not in done.stderr
    until_blocking(lambda: not ask(daemon, "leases"))
