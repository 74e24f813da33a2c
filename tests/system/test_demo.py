"""`make run`: grants within a minute, its own folder and port beside another gpulockd, and nothing left at the end."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.states import until_blocking
from tests.system.commands import ROOT, clean_env

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

GRANT = re.compile(r"^\d\d:\d\d:\d\d  (\S+) +got GPU [\d, GPU]+.* after [\d.]+ s$", re.MULTILINE)


class Demo:
    """One demo with folders of its own; its processes carry a mark in their environment."""

    def __init__(self, base: Path, *words: str) -> None:
        self.base = base
        self.log = base / f"log-{secrets.token_hex(3)}"
        self.mark = secrets.token_hex(16)
        runtime = base / "run"
        runtime.mkdir(exist_ok=True)
        env = clean_env(XDG_RUNTIME_DIR=str(runtime), XDG_STATE_HOME=str(base / "state"), DEMO_MARK=self.mark)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpulockd.demo", *words],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """All that it has said."""
        return self.log.read_text(errors="replace")

    def waits_with_signals(self) -> bool:
        """Whether a Ctrl-C waits until it is asked for."""
        said = Path(f"/proc/{self.process.pid}/status").read_text()
        return bool(int(said.partition("SigBlk:")[2].split()[0], 16) & 1 << (signal.SIGINT - 1))

    def living(self) -> list[int]:
        """The pids of all its processes. The store has no environment to show, but its socket in its title."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                marked = folder.name.isdigit() and self.mark.encode() in (folder / "environ").read_bytes()
                if marked or (folder.name.isdigit() and bytes(self.base) in (folder / "cmdline").read_bytes()):
                    found.append(int(folder.name))
        return found

    def daemon(self) -> int:
        """The pid of its daemon; what the daemon forks is for a moment like it."""
        found = []
        for pid in self.living():
            with suppress(psutil.Error):
                if "serve" in psutil.Process(pid).cmdline():
                    found.append((psutil.Process(pid).create_time(), pid))
        return min(found)[1]

    def close(self) -> None:
        """Leave nothing behind."""
        for pid in self.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def base() -> Iterator[Path]:
    """A short folder, since sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="gdm", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def demos(base: Path) -> Iterator[list[Demo]]:
    """Demos that do not outlive the test."""
    made: list[Demo] = []
    yield made
    for demo in made:
        demo.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_grants_and_ends_all_that_it_started(base: Path, demos: list[Demo], number: int) -> None:
    """The first minute of a newcomer; Ctrl-C must leave no process behind, the store neither."""
    demo = Demo(base, "--simulate", "2")
    demos.append(demo)
    until_blocking(lambda: len(GRANT.findall(demo.said)) >= 5 and len(set(GRANT.findall(demo.said))) >= 2, within_s=60)
    until_blocking(lambda: len(demo.living()) >= 9)  # the demo, the daemon, the store and six of the load
    demo.process.send_signal(number)
    assert demo.process.wait(60) == 0
    until_blocking(lambda: not demo.living())
    assert "Traceback" not in demo.said


@pytest.mark.parametrize("processes", [1, 2])
def test_a_ctrl_c_while_it_starts_ends_it_without_a_trace(base: Path, demos: list[Demo], processes: int) -> None:
    """Who changes their mind must not be shown the inside of Python, nor be left with half a start."""
    demo = Demo(base, "--simulate", "2")
    demos.append(demo)
    until_blocking(lambda: demo.waits_with_signals() and len(demo.living()) >= processes)
    os.killpg(demo.process.pid, signal.SIGINT)  # as the terminal does
    assert demo.process.wait(60) in (0, 130)
    until_blocking(lambda: not demo.living())
    assert "Traceback" not in demo.said and "Error" not in demo.said, demo.said


def test_without_load_it_is_the_daemon_alone(base: Path, demos: list[Demo]) -> None:
    """`make run ARGS=--no-demo`."""
    demo = Demo(base, "--no-demo", "--simulate", "1")
    demos.append(demo)
    until_blocking(lambda: " ready: " in demo.said)
    until_blocking(lambda: len(demo.living()) == 3)
    demo.process.terminate()
    assert demo.process.wait(60) == 0
    until_blocking(lambda: not demo.living())


def test_beside_another_it_takes_its_own_folder_and_port(base: Path, demos: list[Demo]) -> None:
    """Neither may disturb the other, nor offer the other's cards."""
    first = Demo(base, "--no-demo")
    demos.append(first)
    until_blocking(lambda: " ready: " in first.said)
    second = Demo(base)
    demos.append(second)
    until_blocking(lambda: GRANT.search(second.said), within_s=60)
    assert "another gpulockd uses" in second.said
    assert "is taken, so HTTP is on port" in second.said
    private = Path(re.findall(r"keeps to itself in (\S+)", second.said)[0])
    assert f"GPULOCKD_SOCKET={private} " in second.said, "nobody would know how to reach it"
    second.process.terminate()
    assert second.process.wait(60) == 0
    assert not private.exists()
    assert first.process.poll() is None


def test_a_killed_daemon_ends_the_demo_and_its_store(base: Path, demos: list[Demo]) -> None:
    """Load and store would go on without anybody who knows of them."""
    demo = Demo(base, "--simulate", "2")
    demos.append(demo)
    until_blocking(lambda: GRANT.search(demo.said), within_s=60)
    assert demo.said.count(" ready: ") == 1
    os.kill(demo.daemon(), signal.SIGKILL)
    assert demo.process.wait(60) == 1
    assert "gpulockd: the daemon has ended (signal 9)" in demo.said
    until_blocking(lambda: not demo.living())


def test_a_wrong_option_is_named_with_the_way_to_the_right_ones(base: Path, demos: list[Demo]) -> None:
    """`make run ARGS=--bogus`."""
    demo = Demo(base, "--bogus")
    demos.append(demo)
    assert demo.process.wait(60) == 2
    assert demo.said.startswith("gpulockd.demo: unrecognized arguments: --bogus\n  hint: 'make run ARGS=--help'")


def test_a_killed_demo_takes_the_rest_with_it(base: Path, demos: list[Demo]) -> None:
    """Even SIGKILL leaves nothing behind."""
    demo = Demo(base, "--simulate", "2")
    demos.append(demo)
    until_blocking(lambda: GRANT.search(demo.said), within_s=60)
    demo.process.kill()
    until_blocking(lambda: not demo.living())
