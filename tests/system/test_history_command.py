"""`gpulockd history`, and `status` and `queue` on a narrow terminal, against a real daemon."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import Started, call, clean_env, leases, one_daemon, queued

BEHIND = "behind-the-one-with-a-name-that-is-just-as-long-and-wants-one-card-of-two"
HEADS = ("GPU  MODEL", "PLACE", "BEGAN")
LONG = "whisper-large-v3-transcribe-and-translate-everything-that-was-ever-said-here"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon with two cards."""
    with one_daemon(simulate=2) as made:
        yield made


def narrow(daemon: Daemon, *words: str) -> list[str]:
    """The lines of a command on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    script = f"stty cols 80 rows 24; exec {sys.executable} -m gpulockd {' '.join(words)}"
    env = clean_env(GPULOCKD_SOCKET=daemon.socket, TERM="xterm")
    said = b""
    try:
        with subprocess.Popen(["sh", "-c", script], env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            with suppress(OSError):  # the other side has closed
                while part := os.read(ours, 65536):
                    said += part
        assert process.returncode == 0, said
        return said.decode().splitlines()
    finally:
        os.close(ours)


def test_holds_and_waits_that_came_to_nothing_are_told_the_latest_first(daemon: Daemon) -> None:
    """Who had the GPU last night is asked the next morning."""
    assert call(daemon, "run", "-q", "--task", "first", "--gpu", "0", "--", "true").returncode == 0
    assert call(daemon, "run", "-q", "--task", "second", "--gpu", "1", "--", "true").returncode == 0
    said = call(daemon, "history")
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0].split() == ["BEGAN", "TASK", "GPU", "WAITED", "HELD", "ENDED"]
    names = [line.split()[1] for line in lines[1:]]
    assert names.index("second") < names.index("first")
    assert "released" in lines[1]
    assert "first" not in call(daemon, "history", "--gpu", "1").stdout
    only = json.loads(call(daemon, "history", "--task", "first", "--json").stdout)
    assert [hold["task"] for hold in only["holds"]] == ["first"]
    short = call(daemon, "history", "--limit", "1")
    assert len(short.stdout.splitlines()) == 2 and "--limit" in short.stderr
    assert call(daemon, "history", "--task", "nobody").stdout == "nobody held or waited in that time\n"
    assert call(daemon, "history", "--since", "soon").returncode == 2
    for typo in ("9", "abc"):
        missing = call(daemon, "history", "--gpu", typo)
        assert (missing.returncode, missing.stdout) == (1, ""), "as `status` says it"
        assert f"there is no GPU '{typo}' here" in missing.stderr
    assert call(daemon, "history", "--limit", "0").returncode == 2


def test_a_wait_that_was_left_and_a_hold_that_goes_on_are_told(daemon: Daemon, tmp_path: Path) -> None:
    """Both are what somebody looks for who asks why a job did not run."""
    holder = Started(daemon, tmp_path, "run", "-q", "-n", "2", "--task", LONG, "--", "sleep", "300")
    waiter = None
    try:
        until_blocking(lambda: leases(daemon, LONG))
        waiter = Started(daemon, tmp_path, "run", "-q", "--task", BEHIND, "--", "true")
        until_blocking(lambda: queued(daemon, BEHIND))
        for words in (("status",), ("queue",), ("history",)):
            lines = narrow(daemon, *words)
            # Sentences may wrap, rows of a table may not.
            at = next(i for i, line in enumerate(lines) if line.startswith(HEADS))
            assert len(lines[at]) <= 80 and len(lines[at + 1]) <= 80, lines
            assert "…" in lines[at + 1], "what is cut is marked"
        assert "…" in narrow(daemon, "queue")[0] and len(narrow(daemon, "queue")[0]) <= 80
        for asked in ("events", "top --once"):
            told = [line for line in narrow(daemon, asked) if line[2:3] == ":" and "whisper" in line]
            assert told and all("…" in line or len(line) < 80 for line in told), told
            assert all(len(line) <= 80 for line in told), told
        assert "1 waits: GPU 0 held by" in call(daemon, "queue").stdout
        assert LONG in call(daemon, "status").stdout, "a file gets all of it"
        waiter.close()
        until_blocking(lambda: "left the queue" in call(daemon, "history", "--task", BEHIND).stdout)
        assert "holds it now" in call(daemon, "history", "--task", LONG).stdout
    finally:
        for one in (holder, waiter):
            if one is not None:
                one.close()


def test_history_loads_the_standard_library_only() -> None:
    """It is one of the short commands."""
    program = (
        "import sys\nfrom gpulockd.cli import history, top\n"
        "print([name for name in ('redis', 'anyio', 'asyncio', 'textual', 'msgspec') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=clean_env(), capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
