"""docs/operations.md: every command in it works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.system.commands import ROOT, clean_env, one_daemon

PAGE = ROOT / "docs" / "operations.md"
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon in whose pool somebody has held a gpu."""
    with one_daemon() as running:
        yield running


@pytest.fixture(scope="module")
def shell(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user whose `gpulockd` is this one, with a folder in the place of /tmp."""
    folder = tmp_path_factory.mktemp("shell")
    program = folder / "gpulockd"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpulockd "$@"\n')
    program.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return clean_env(
        PATH=path, GPULOCKD_SOCKET=daemon.socket, XDG_STATE_HOME=str(daemon.state.parent / "own"), SHELF=str(folder)
    )


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0][:40])
def test_the_commands_of_the_page_work(block: str, shell: dict[str, str]) -> None:
    """Who reads that page is in a hurry."""
    if "gpulockd drill" in block:
        pytest.skip("tests/system/test_drill.py runs it")
    script = block.replace("/tmp/", shell["SHELF"] + "/")
    done = subprocess.run(["bash", "-eu", "-c", script], env=shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_that_is_named_exists() -> None:
    """A link that leads nowhere is worse than none."""
    links = re.findall(r"\]\(([a-z.-]+\.md)", PAGE.read_text())
    assert links and all(Path(PAGE.parent, link).exists() for link in links)
