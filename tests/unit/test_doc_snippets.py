"""What the pages about HTTP and about moving from another lock tell to type, typed: each block of a page, in order.

A page is a story: its Python blocks share one program, its shell blocks one folder. Whatever a block calls that is the
reader's own (`train`, `do_gpu_work`) is given here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.daemons import CALM, ROOT, Daemon
from tests.servers import Server
from tests.system.commands import clean_env, one_daemon

PAGES = ("migrate-yivideo.md", "migrate-redis-lock.md", "migrate-flock.md", "http.md")
DOCUMENTED = "http://localhost:8788"
READERS_OWN = """
def train():
    return "trained"
do_gpu_work = train
"""
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of a page: the line on which it begins, its language, and what it says."""

    line: int
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page."""
    whole = (ROOT / "docs" / page).read_text()
    assert whole.count("```") == 2 * len(FENCE.findall(whole)), f"{page}: a block without a language, or without an end"
    return [Block(whole.count("\n", 0, found.start()) + 1, found[1], found[2]) for found in FENCE.finditer(whole)]


def program(page: str, found: list[Block]) -> str:
    """The Python blocks of a page, and the lines that a change adds, as one program that names their lines."""
    parts = [READERS_OWN]
    for block in found:
        if block.language == "diff":
            lines = [line[1:] if line.startswith("+") else "" for line in block.text.splitlines()]
            block = block._replace(language="python", text="\n".join(lines))
        if block.language == "python":
            place = "\n" * block.line + block.text
            parts.append(f"exec(compile({place!r}, {page!r}, 'exec'))")
    return "\n".join(parts)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with two GPUs."""
    with one_daemon(config=CALM) as made:
        yield made


@pytest.fixture
def environment(daemon: Daemon, valkey_server: Server, tmp_path: Path) -> dict[str, str]:
    """A shell in which `gpulockd` and `python` are ours, and a Redis of the reader's own."""
    (tmp_path / "train.py").write_text("print('trained')\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return clean_env(
        GPULOCKD_SOCKET=daemon.socket, REDIS_URL=valkey_server.url, PATH=path, TMPDIR=str(tmp_path), LC_ALL="C.UTF-8"
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_languages_of_a_page_are_ones_that_are_run(page: str) -> None:
    """A block that nobody runs is a promise that nobody keeps."""
    assert {block.language for block in blocks(page)} <= {"python", "sh", "diff"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Each block sees what those before it have imported, as a reader does."""
    text = program(page, blocks(page)).replace("/tmp/", f"{tmp_path}/")
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=110
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_the_shell_of_a_page_runs(page: str, daemon: Daemon, environment: dict[str, str], tmp_path: Path) -> None:
    """With the port and the lock files of this test in the place of the documented ones."""
    for block in blocks(page):
        if block.language == "sh":
            line = block.text.replace(DOCUMENTED, daemon.url).replace("/tmp/", f"{tmp_path}/")
            line = line.replace("curl ", "curl -fsS ")
            done = subprocess.run(
                ["bash", "-eu", "-c", line], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=110
            )
            assert done.returncode == 0, f"{page}:{block.line}: {done.stderr}"
