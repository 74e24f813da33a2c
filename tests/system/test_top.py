"""`gpulockd top` against a real daemon: driven by Textual's pilot, once on a real terminal, and as one frame."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import CALM, Daemon, daemon_folder, eventually, running_daemon
from tests.system.commands import Started, call, clean_env, command, leases, one_daemon

pytest.importorskip("textual", reason="textual is not installed (pip install 'gpulockd[tui]')")

from gpulockd.cli.watching import rows, screen
from gpulockd.cli.watching.screen import Question, Top

WIDE, HIGH = 80, 24


def shown(top: Top) -> list[str]:
    """The cards as they stand on the screen."""
    return [" ".join(str(cell) for cell in top.cards.get_row_at(i)) for i in range(top.cards.row_count)]


def waiting(top: Top) -> str:
    """The queue as it stands on the screen."""
    return str(top.line.render())


def head(top: Top) -> str:
    """The first line of the screen."""
    return str(top.heading.render())


async def test_holders_and_waiters_come_and_go_by_the_stream_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view that polls is late, and costs the daemon what it shows."""
    monkeypatch.setattr(screen, "SENSORS_S", 3600.0)
    async with running_daemon(config=CALM, simulate=2) as daemon:
        top = Top(daemon.socket)
        async with top.run_test(size=(WIDE, HIGH)) as pilot:
            await eventually(lambda: len(shown(top)) == 2 and "free" in shown(top)[0], 30)
            holder = Started(daemon, tmp_path, "run", "-q", "-n", "2", "--task", "whisper", "--", "sleep", "300")
            waiter = None
            try:
                await eventually(lambda: all("whisper" in row for row in shown(top)), 30)
                assert re.search(r"\d+ s of 30:00", shown(top)[0]), "the age against the next limit"
                assert "35°C" in shown(top)[0] and "/24 GiB" in shown(top)[0]
                waiter = Started(daemon, tmp_path, "run", "-q", "--task", "ocr", "--", "true")
                await eventually(lambda: "ocr" in waiting(top), 30)
                assert "GPU 0 held by whisper" in waiting(top)
                await eventually(lambda: "1 waiting" in head(top), 30)
                await eventually(lambda: "whisper" in str(top.events.render()), 30)
                assert pilot.app.size.width == WIDE
                holder.close()
                await eventually(lambda: "free" in shown(top)[0] and "nobody waits" in waiting(top), 30)
                assert waiter.wait() == 0
            finally:
                for started in (holder, waiter):
                    if started is not None:
                        started.close()
            await pilot.press("q")


async def test_keys_sort_release_and_drain_and_ask_before_they_act(tmp_path: Path) -> None:
    """A key that is hit by accident must take no GPU away."""
    async with running_daemon(config=CALM, simulate=2) as daemon:
        started = [Started(daemon, tmp_path, "run", "-q", "--task", f"job{i}", "--", "sleep", "300") for i in range(2)]
        top = Top(daemon.socket)
        try:
            async with top.run_test(size=(WIDE, HIGH)) as pilot:
                await eventually(lambda: "job" in "".join(shown(top)) and "free" not in "".join(shown(top)), 30)
                await pilot.press("s")
                assert top.order == "age" and "sorted by age" in head(top)
                await pilot.press(*["s"] * (len(rows.SORTS) - 1))
                task = top.shown[0].task
                await pilot.press("r")
                assert isinstance(top.screen, Question)
                await pilot.press("n")
                assert not isinstance(top.screen, Question)
                assert leases(daemon, task), "no was taken for yes"
                await pilot.press("r")
                await pilot.press("y")
                await eventually(lambda: not leases(daemon, task), 30)
                await eventually(lambda: "free" in shown(top)[0], 30)
                await pilot.press("d", "y")
                await eventually(lambda: "drained" in shown(top)[0], 30)
                await pilot.press("d", "y")
                await eventually(lambda: "free" in shown(top)[0], 30)
                await pilot.press("q")
        finally:
            for one in started:
                one.close()


async def test_it_says_that_the_daemon_is_gone_and_comes_back_with_the_next_one() -> None:
    """Old numbers that look alive are worse than none."""
    async with daemon_folder() as base:
        async with running_daemon(config=CALM, base=base, simulate=2) as daemon:
            top = Top(daemon.socket)
            async with top.run_test(size=(WIDE, HIGH)) as pilot:
                await eventually(lambda: len(shown(top)) == 2, 30)
                await daemon.kill()
                await eventually(lambda: " for " in head(top) and "what is shown is old" in head(top), 30)
                assert top.heading.has_class("gone")
                assert len(shown(top)) == 2, "what was known stays, marked as old"
                async with running_daemon(config=CALM, base=base, simulate=2):
                    await eventually(lambda: "GPUs held" in head(top), 30)
                    assert not top.heading.has_class("gone")
                await pilot.press("q")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon for who only looks."""
    with one_daemon(config=CALM, simulate=2) as made:
        yield made


def test_on_a_real_terminal_it_fits_80_by_24_without_colours_and_q_ends_it(daemon: Daemon) -> None:
    """Pilot has no terminal; this one has, as ssh would."""
    pid, door = pty.fork()
    if pid == 0:
        env = clean_env(GPULOCKD_SOCKET=daemon.socket, TERM="xterm-256color", LINES="24", COLUMNS="80", LANG="C.UTF-8")
        os.execve(sys.executable, command("top"), env)
    said = b""
    ends_at = time.monotonic() + 60
    sent = False
    try:
        while time.monotonic() < ends_at:
            if select.select([door], [], [], 0.5)[0]:
                try:
                    part = os.read(door, 65536)
                except OSError:  # the other side has closed
                    break
                if not part:
                    break
                said += part
            if b"GPUs held" in said and b"35" in said and not sent:
                os.write(door, b"q")
                sent = True
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(door)
    assert sent, said[-2000:]
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"\x1b[?1049h" in said and b"\x1b[?1049l" in said, "the screen of before is back"
    coloured = re.findall(rb"\x1b\[[0-9;]*38;2;(\d+);(\d+);(\d+)", said)
    assert all(r == g == b for r, g, b in coloured), "NO_COLOR shows greys only"


def test_one_frame_for_scripts(daemon: Daemon) -> None:
    """A script has no terminal, and perhaps no textual."""
    said = call(daemon, "top", "--once")
    assert said.returncode == 0, said.stderr
    assert "0 of 2 GPUs held" in said.stdout and "nobody waits" in said.stdout
    whole = json.loads(call(daemon, "top", "--once", "--json").stdout)
    assert [gpu["key"] for gpu in whole["gpus"]] == ["gpu_lock:0", "gpu_lock:1"]
    assert call(daemon, "top").returncode == 2, "no terminal"
    assert call(None, "top", "--once", GPULOCKD_SOCKET="/nonexistent/api.sock").returncode == 3


def test_without_its_extra_it_names_the_cure(daemon: Daemon, tmp_path: Path) -> None:
    """The base installation has no textual."""
    (tmp_path / "textual.py").write_text("raise ImportError('no', name='textual')\n")
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    said = subprocess.run(command("top"), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert said.returncode == 1
    assert "top needs the package 'textual'" in said.stderr and "pip install 'gpulockd[tui]'" in said.stderr
    once = subprocess.run(command("top", "--once"), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert once.returncode == 0
