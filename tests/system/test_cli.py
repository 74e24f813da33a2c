"""The short commands: what they print, their exit codes, what they load, and how soon they answer."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gpulockd.cli.records import progress_of, whole_percents
from tests.daemons import Daemon, daemon_folder, running_daemon
from tests.states import until, until_blocking
from tests.system.commands import Started, ask, call, clean_env, command, leases, one_daemon, queued

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

LISTINGS = ("status", "queue", "events", "version")
HEAVY = ("redis", "anyio", "msgspec", "asyncio", "structlog", "starlette", "hiredis")
SOON_S, STARTS, TRIES = 1.0, 10, 10
"""A short command takes about 60 ms; this is what a busy machine may make of it, or so many starts of Python that does
nothing, at the best of so many times."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with two simulated GPUs."""
    with one_daemon() as running:
        yield running


@pytest.fixture
def held(daemon: Daemon, tmp_path: Path) -> Iterator[Daemon]:
    """Both GPUs are held by "ocr-batch", and "train" waits."""
    holder = Started(daemon, tmp_path, "run", "-n", "2", "--task", "ocr-batch", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "ocr-batch"))
    waiter = Started(daemon, tmp_path, "run", "-n", "2", "-p", "3", "--task", "train-列", "--", "sleep", "300")
    until_blocking(lambda: queued(daemon, "train-列"))
    yield daemon
    waiter.close()
    holder.close()
    until_blocking(lambda: not ask(daemon, "leases") and all(gpu["state"] == "ready" for gpu in ask(daemon, "gpus")))


def said(daemon: Daemon, *words: str) -> Any:
    """What a command prints as JSON."""
    done = call(daemon, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def shown_on(ours: int, theirs: int) -> str:
    """All that a terminal shows whose programs have ended: the kernel hands it on in pieces."""
    os.close(theirs)
    shown = b""
    with suppress(OSError):
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    return shown.decode()


def test_status_shows_who_holds_what_and_who_waits(held: Daemon) -> None:
    """The first question of everybody."""
    done = call(held, "status")
    assert done.returncode == 0, done.stderr
    head, first, second, line = done.stdout.splitlines()
    assert head.split() == ["GPU", "MODEL", "STATE", "TASK", "PROCESS", "HELD", "MEMORY", "PROGRESS"]
    assert first.startswith("0 ")
    assert second.startswith("1 ")
    assert "ocr-batch" in first
    assert line.startswith("queue: 1 waiting, oldest ")
    assert "(train-列)" in line
    assert "\033" not in done.stdout


def test_percents_are_whole_ones() -> None:
    """33.3333 % pretends to know."""
    assert progress_of({"percent": 100 / 3, "note": "page 1 of 3"}) == "33 % page 1 of 3"
    assert whole_percents("GPU 0 held by a (pid 7, 1.5 s, 33.3333 %)") == "GPU 0 held by a (pid 7, 1.5 s, 33 %)"


def test_status_of_one_gpu_and_of_none(held: Daemon) -> None:
    """A negative answer is 1, not an error of usage."""
    assert len(said(held, "status", "1")["gpus"]) == 1
    uuid = said(held, "status")["gpus"][0]["uuid"]
    assert said(held, "status", uuid)["gpus"][0]["index"] == 0
    assert said(held, "status", uuid[:-1])["gpus"], "as `run --gpu` takes it"
    missing = call(held, "status", "9")
    assert missing.returncode == 1
    assert "hint:" in missing.stderr


def test_listings_print_json(held: Daemon) -> None:
    """Data on stdout and nothing else there."""
    status = said(held, "status")
    assert [gpu["index"] for gpu in status["gpus"]] == [0, 1]
    assert status["leases"][0]["task"] == "ocr-batch"
    queue = said(held, "queue")
    assert (queue["queued"], queue["queue"][0]["task"], queue["queue"][0]["priority"]) == (1, "train-列", 3)
    assert said(held, "version")["gpulockd"]


def test_queue_names_the_holder_and_the_waiters(held: Daemon) -> None:
    """An empty-looking queue is taken for an idle machine."""
    done = call(held, "queue")
    assert "GPU 0, 1 held by ocr-batch" in done.stdout
    assert "any 2 GPUs" in done.stdout


def test_release_takes_the_gpu_and_then_finds_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """0, then 1."""
    holder = Started(daemon, tmp_path, "run", "--gpu", "1", "--task", "taken", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "taken") and "got GPU" in holder.said)
    done = call(daemon, "release", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "took GPU 1 from taken" in done.stdout
    assert holder.wait(60) == 143
    assert "revoked" in holder.said
    again = call(daemon, "release", "1")
    assert again.returncode == 1
    assert "nothing is held as '1'" in again.stderr


def test_release_asks_with_the_holders_name(held: Daemon) -> None:
    """Who meant another job sees it in time."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("release", "0"), env=clean_env(GPULOCKD_SOCKET=held.socket), stdin=theirs, stderr=theirs
    ) as asking:
        os.write(ours, b"n\n")
        assert asking.wait(60) == 1
    shown = shown_on(ours, theirs)
    pid = leases(held, "ocr-batch")[0]["pid"]
    assert f"GPU 0, GPU 1 held by ocr-batch (pid {pid} " in shown
    assert "its program is ended" in shown
    assert leases(held, "ocr-batch")


def test_events_tells_what_happened(daemon: Daemon) -> None:
    """Without -f it ends by itself."""
    assert call(daemon, "run", "-q", "--task", "noted", "--", "true").returncode == 0
    lines = [json.loads(line) for line in call(daemon, "events", "--json").stdout.splitlines()]
    kinds = [event["type"] for event in lines if event.get("task") == "noted"]
    assert kinds == ["lock_acquired", "lock_released"]
    assert "lock_released" in call(daemon, "events", "--since", "1h").stdout
    assert call(daemon, "events", "--since", "soon").returncode == 2


async def test_following_events_survives_a_restart_without_a_gap(tmp_path: Path) -> None:
    """It resumes after the last event seen."""
    async with daemon_folder() as base:
        async with running_daemon(base=base) as first:
            follower = Started(first, tmp_path, "events", "-f", "--since", "1m", "--json")
            await until(lambda: "daemon" in follower.printed or "session_opened" in follower.printed)
            await first.kill()
        try:
            async with running_daemon(base=base) as second:
                assert call(second, "run", "-q", "--task", "after", "--", "true").returncode == 0
                await until(lambda: follower.printed.count('"after"') >= 2)
            events = [json.loads(line) for line in follower.printed.rpartition("\n")[0].splitlines()]
            seqs = [event["seq"] for event in events]
            assert seqs == sorted(set(seqs))
            follower.process.send_signal(signal.SIGINT)
            assert follower.wait() == 130
        finally:
            follower.close()


def test_token_prints_it_or_says_why_not(daemon: Daemon, tmp_path: Path) -> None:
    """The page and curl need it."""
    done = call(daemon, "token", "--state-dir", str(daemon.state))
    assert (done.returncode, done.stdout.strip()) == (0, daemon.token)
    missing = call(daemon, "token", "--state-dir", str(tmp_path))
    assert missing.returncode == 1
    assert "gpulockd serve" in missing.stderr
    away = call(None, "token", GPULOCKD_SOCKET=str(tmp_path / "api.sock"))
    assert (away.returncode, away.stdout) == (3, "") and "--state-dir" in away.stderr


@pytest.mark.parametrize("words", [("status",), ("queue",), ("release", "0"), ("events",)])
def test_without_a_daemon_they_exit_with_3_and_the_cure(tmp_path: Path, words: tuple[str, ...]) -> None:
    """What, where, and what to do."""
    socket = str(tmp_path / "api.sock")
    done = call(None, *words, GPULOCKD_SOCKET=socket)
    assert done.returncode == 3
    assert socket in done.stderr
    assert "hint: start it with 'gpulockd serve'" in done.stderr
    assert done.stdout == ""


def test_usage_errors_give_2_and_name_the_nearest_command() -> None:
    """A typo must not cost a look into the manual."""
    typo = call(None, "statsu")
    assert typo.returncode == 2
    assert "did you mean 'status'?" in typo.stderr
    assert call(None, "status", "--nope").returncode == 2
    option = call(None, "run", "--timeut", "2h", "--", "true")
    assert option.returncode == 125
    assert "did you mean '--timeout'?" in option.stderr
    assert "did you mean" not in call(None, "status", "--nope").stderr
    assert call(None).returncode == 2
    assert call(None, "--help").returncode == 0
    assert call(None, "run", "--help").returncode == 0


def test_what_a_terminal_cannot_show_is_replaced(held: Daemon) -> None:
    """A task's name in another script must not end the listing of all others."""
    for words in (("status",), ("history",), ("queue",), ("top", "--once")):
        done = call(held, *words, PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
        assert "ocr-batch" in done.stdout


def test_more_gpus_than_can_be_simulated_are_refused_before_a_store_is_started(tmp_path: Path) -> None:
    """A store that nobody uses would stay behind."""
    done = call(None, "serve", "--simulate", "1000", "--socket", str(tmp_path), "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 2
    assert "0 to 64" in done.stderr
    assert not (tmp_path / "state").exists()


def test_an_unexpected_error_is_one_line_without_debug(daemon: Daemon) -> None:
    """A traceback helps only who asked for it."""
    program = "import sys, gpulockd.cli as c; c._meant = None; sys.exit(c.main(sys.argv[1:]))"
    words = [command()[0], "-c", program]
    quiet = subprocess.run([*words, "nope"], env=clean_env(), capture_output=True, text=True, timeout=60)
    assert "Traceback" not in quiet.stderr
    assert "--debug" in quiet.stderr
    loud = subprocess.run([*words, "--debug", "nope"], env=clean_env(), capture_output=True, text=True, timeout=60)
    assert "Traceback" in loud.stderr


def test_a_closed_pipe_is_quiet(daemon: Daemon) -> None:
    """As in `gpulockd status | head -1`."""
    line = f"'{command()[0]}' -m gpulockd status | true"
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_only_on_a_terminal_and_not_against_no_color(daemon: Daemon, no_color: str) -> None:
    """Logs and pipes must stay clean."""
    ours, theirs = pty.openpty()
    env = clean_env(GPULOCKD_SOCKET=daemon.socket, TERM="xterm") | {"NO_COLOR": no_color}
    subprocess.run(command("status"), env=env, stdin=theirs, stdout=theirs, stderr=theirs, timeout=60)
    shown = shown_on(ours, theirs)
    assert ("\033[" in shown) == (no_color == "")


@pytest.mark.parametrize("words", [("status",), ("queue",), ("release", "7"), ("events",), ("token",), ("version",)])
def test_short_commands_load_the_standard_library_only_and_answer_at_once(
    daemon: Daemon, words: tuple[str, ...]
) -> None:
    """They stand in prompts and loops."""
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    traced = [command()[0], "-X", "importtime", "-m", "gpulockd", *words]
    done = subprocess.run(traced, env=env, capture_output=True, text=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not loaded.intersection(HEAVY)
    took_s = [(took(env, *command(*words)), took(env, command()[0], "-c", ""))]
    while not any(ours_s < max(SOON_S, STARTS * bare_s) for ours_s, bare_s in took_s):
        assert len(took_s) < TRIES, took_s
        took_s.append((took(env, *command(*words)), took(env, command()[0], "-c", "")))


def took(env: dict[str, str], *words: str) -> float:
    """How long a program takes (in seconds)."""
    began = time.monotonic()
    subprocess.run(words, env=env, capture_output=True, timeout=60)
    return time.monotonic() - began
