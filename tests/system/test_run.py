"""`gpulockd run`: exit codes, the command's environment, waiting, and joining, with a real daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import pytest

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import Started, ask, call, clean_env, command, leases, one_daemon, queued, read_json

Start = Callable[..., Started]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with two simulated GPUs."""
    with one_daemon() as running:
        yield running


@pytest.fixture
def start(daemon: Daemon, tmp_path: Path) -> Iterator[Start]:
    """Starts commands that do not outlive the test."""
    started: list[Started] = []

    def begin(*words: str, **env: str) -> Started:
        started.append(Started(daemon, tmp_path, *words, **env))
        return started[-1]

    yield begin
    for one in started:
        one.close()
    until_blocking(lambda: not read_all(daemon))


def read_all(daemon: Daemon) -> list[object]:
    """Every lease and ticket that is left."""
    return [*ask(daemon, "leases"), *ask(daemon, "queue")]


def hold(start: Start, daemon: Daemon, *words: str) -> Started:
    """Hold both GPUs with a sleeping command."""
    holder = start("run", "-q", "-n", "2", "--task", "holder", *words, "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "holder"))
    return holder


@pytest.mark.parametrize("code", [0, 1, 7, 75, 124])
def test_the_exit_code_is_the_commands_own(daemon: Daemon, code: int) -> None:
    """A wrapper that swallows it makes every failed job look well."""
    assert call(daemon, "run", "-q", "--", "sh", "-c", f"exit {code}").returncode == code


def test_a_command_that_dies_of_a_signal_gives_128_and_its_number(daemon: Daemon) -> None:
    """As shells do."""
    assert call(daemon, "run", "-q", "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_what_cannot_be_run_gives_127_or_126_and_the_lease_back(daemon: Daemon, tmp_path: Path) -> None:
    """As env and timeout do."""
    script = tmp_path / "no-x"
    script.write_text("#!/bin/sh\n")
    missing = call(daemon, "run", "--report", str(tmp_path / "r"), "--", "/no/such/command")
    assert missing.returncode == 127
    assert "not found" in missing.stderr
    assert read_json(tmp_path / "r")["outcome"] == "not_found"
    assert call(daemon, "run", "--", str(script)).returncode == 126
    assert call(daemon, "run", "--report", "-", "--", "true").returncode == 125, "stdout is the command's"
    assert not read_all(daemon)


def test_nobody_waits_for_a_gpu_to_learn_that_the_command_is_missing(daemon: Daemon, start: Start) -> None:
    """It would be an hour later, after everybody else."""
    hold(start, daemon)
    missing = call(daemon, "run", "--", "no-such-command")
    assert missing.returncode == 127
    assert "'no-such-command': not found" in missing.stderr
    assert "waiting" not in missing.stderr


def test_the_environment_says_how_long_to_wait_or_not_to_lock(daemon: Daemon, start: Start) -> None:
    """As for the library: a program of a script's author and the script itself are tuned by the same names."""
    hold(start, daemon)
    assert call(daemon, "run", "--", "true", GPU_LOCK_MAX_WAIT_TIME="200ms").returncode == 124
    wrong = call(daemon, "run", "--", "true", GPU_LOCK_MAX_WAIT_TIME="soon")
    assert wrong.returncode == 125
    assert "GPU_LOCK_MAX_WAIT_TIME" in wrong.stderr
    unlocked = call(daemon, "run", "--", "sh", "-c", "exit 7", GPULOCKD_DISABLE="1")
    assert unlocked.returncode == 7
    assert "without a lock" in unlocked.stderr


def test_busy_without_waiting_gives_75(daemon: Daemon, start: Start) -> None:
    """It must tell "busy" from every failure."""
    hold(start, daemon)
    refused = call(daemon, "run", "--no-wait", "--", "true")
    assert refused.returncode == 75
    assert "held by holder" in refused.stderr
    assert "leave --no-wait out" in refused.stderr
    refused = call(daemon, "run", "--wait", "0", "--", "true")
    assert refused.returncode == 75
    assert "--no-wait" not in refused.stderr


def test_a_run_that_cannot_keep_its_lease_gives_it_back(daemon: Daemon) -> None:
    """Otherwise the GPU stands idle until the session ends."""
    done = call(daemon, "run", "--task", "unkept", "--", "true", GPULOCKD_SESSION_TTL="soon")
    assert "got GPU" in done.stderr
    assert not leases(daemon, "unkept")
    done = call(daemon, "run", "--task", "unkept", "--", "true", GPULOCKD_SETTLE_GRACE="soon")
    assert done.returncode == 125
    assert "released" not in done.stderr
    assert not leases(daemon, "unkept")


def test_released_is_said_only_if_the_ledger_confirms_it(daemon: Daemon) -> None:
    """Who reads it counts on a free GPU."""
    take = f"kill -STOP $PPID; {sys.executable} -m gpulockd release 0; kill -CONT $PPID"
    done = call(daemon, "run", "--gpu", "0", "--", "sh", "-c", f"({take}) & wait")
    assert "took GPU 0" in done.stdout
    # It hears of the loss, or finds it when it gives the lease back.
    assert re.search("(had ended before it was given back .|was lost: )it was revoked by an operator", done.stderr)
    assert "released GPU" not in done.stderr


def test_waiting_too_long_gives_124(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """As timeout does."""
    hold(start, daemon)
    refused = call(daemon, "run", "--wait", "300ms", "--report", str(tmp_path / "r"), "--", "true")
    assert refused.returncode == 124
    assert read_json(tmp_path / "r")["outcome"] == "timeout"
    assert read_json(tmp_path / "r")["waited_s"] >= 0.3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-n", "3", "--", "true"), "2 GPUs"),
        (("-n", "0", "--", "true"), "run: -n 0: ask for 1 to 64 GPUs"),
        (("-n", "-1", "--", "true"), "run: -n -1: ask for 1 to 64 GPUs"),
        (("--gpu", "9", "--", "true"), "hint: name others with --gpu"),
        (("--timeout", "0", "--", "true"), "--timeout none"),
        (("--timeout", "49ms", "--", "true"), "0.05 s"),
        (("--soft-signal", "BLA", "--", "true"), "unknown signal 'BLA'"),
        (("--gpu", "9", "--", "true"), "gpu_lock:9"),
        (("--memory", "lots", "--", "true"), "not a memory size"),
        (("--no-such-option", "--", "true"), "--no-such-option"),
        (("--timeout", "soon", "--", "true"), "not a duration"),
        (("--soft-signal", "NOPE", "--", "true"), "--soft-signal"),
        (("--wait", "1", "--no-wait", "--", "true"), "contradict"),
        (("-n", "2", "--gpu", "0", "--", "true"), "-n 2"),
        (("-p", "500", "--", "true"), "-100 to 100"),
        (("--report", "/no/such/folder/r", "--", "true"), "report"),
        ((), "no command"),
    ],
)
def test_impossible_and_wrong_requests_give_125(daemon: Daemon, words: tuple[str, ...], said: str) -> None:
    """A command's own 2 must not look like a usage error of ours."""
    refused = call(daemon, "run", *words)
    assert refused.returncode == 125, refused.stderr
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_no_daemon_gives_125_and_names_the_cure(tmp_path: Path) -> None:
    """What, where, and what to do."""
    refused = call(None, "run", "--", "true", GPULOCKD_SOCKET=str(tmp_path / "api.sock"))
    assert refused.returncode == 125
    assert str(tmp_path / "api.sock") in refused.stderr
    assert "gpulockd serve" in refused.stderr


def test_interrupting_a_wait_leaves_the_queue_with_130(daemon: Daemon, start: Start, tmp_path: Path) -> None:
    """The place of somebody who left would hold up all behind it."""
    hold(start, daemon)
    waiter = start("run", "--task", "waiter", "--report", str(tmp_path / "r"), "--", "true")
    until_blocking(lambda: queued(daemon, "waiter") and "place 1 of 1" in waiter.said)
    waiter.process.send_signal(signal.SIGINT)
    assert waiter.wait() == 130
    until_blocking(lambda: not queued(daemon, "waiter"))
    assert read_json(tmp_path / "r")["outcome"] == "interrupted"


def test_ending_a_wait_with_sigterm_leaves_the_queue_too(daemon: Daemon, start: Start) -> None:
    """A service manager stops jobs so."""
    hold(start, daemon)
    waiter = start("run", "--task", "waiter", "--", "true")
    until_blocking(lambda: queued(daemon, "waiter"))
    waiter.process.terminate()
    assert waiter.wait() == 143
    until_blocking(lambda: not queued(daemon, "waiter"))


def test_a_waiter_is_told_its_place_and_the_holder_then_what_it_got(daemon: Daemon, start: Start) -> None:
    """Who waits wants to know behind whom."""
    holder = hold(start, daemon)
    waiter = start("run", "--task", "waiter", "--", "true")
    until_blocking(lambda: "place 1 of 1" in waiter.said and "held by holder" in waiter.said)
    holder.process.terminate()
    assert waiter.wait() == 0
    assert "gpulockd: got GPU 0 (Simulated GPU) after" in waiter.said
    assert "released GPU 0" in waiter.said


def test_a_log_has_a_line_only_when_the_own_place_changes(daemon: Daemon, start: Start) -> None:
    """In a busy line every waiter's log would grow with every newcomer."""
    hold(start, daemon)
    waiter = start("run", "--task", "waiter", "--", "true")
    until_blocking(lambda: "place 1 of 1" in waiter.said)
    behind = start("run", "--task", "behind", "--", "true")
    until_blocking(lambda: "place 2 of 2" in behind.said)
    first = start("run", "-p", "9", "--task", "first", "--", "true")
    until_blocking(lambda: "place 2 of 3" in waiter.said)
    until_blocking(lambda: "place 1 of 3" in first.said)
    told = re.findall(r"waiting: place (\d+) of \d+(; its turn)?", waiter.said)
    assert [place for place, _ in groupby(told, key=itemgetter(0))] == ["1", "2"]
    assert all(before != after for before, after in pairwise(told)), "a line that says nothing of the own place"


@pytest.mark.parametrize(
    ("env", "warned"),
    [
        ({"GPULOCKD_POOL": "other"}, "GPULOCKD_POOL=other is not the pool of the local daemon ("),
        ({"GPULOCKD_REDIS_URL": "redis://:secret@h"}, "GPULOCKD_REDIS_URL is not the store of the local daemon, which"),
    ],
)
def test_an_environment_that_names_another_pool_or_store_is_warned_of(
    daemon: Daemon, env: dict[str, str], warned: str
) -> None:
    """Programs go by these names, `run` by its daemon."""
    done = call(daemon, "run", "-q", "--", "true", within_s=60.0, **env)
    assert done.returncode == 0
    assert done.stderr.count("\n") <= 1
    assert f"gpulockd: warning: {warned}" in done.stderr
    assert "secret" not in done.stderr
    assert call(daemon, "run", "-q", "--", "true", GPULOCKD_POOL=daemon.pool).stderr == ""


def test_the_command_finds_its_gpus_and_lease_in_its_environment(daemon: Daemon, tmp_path: Path) -> None:
    """What an outer run or a user had set would point it to other GPUs."""
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    report = tmp_path / "r"
    done = call(
        daemon,
        *("run", "-q", "-n", "2", "--report", str(report), "--", sys.executable, "-c", program),
        CUDA_VISIBLE_DEVICES="7",
        GPULOCKD_POOL="",
    )
    env, said = json.loads(done.stdout), read_json(report)
    assert env["CUDA_VISIBLE_DEVICES"] == ",".join(gpu["uuid"] for gpu in said["gpus"])
    assert env["GPULOCKD_LEASE"] == said["lease"]
    assert env["GPULOCKD_TOKEN"] == str(said["token"])
    assert env["GPULOCKD_POOL"] == daemon.pool
    assert env["GPULOCKD_SOCKET"] == daemon.socket
    assert "GPULOCKD_REDIS_URL" not in env
    assert (said["outcome"], said["exit"]) == ("exited", 0)
    assert said["held_s"] > 0


def test_a_run_inside_a_run_joins_instead_of_waiting_for_itself(daemon: Daemon, start: Start) -> None:
    """Scripts that lock call scripts that lock."""
    start("run", "-q", "--gpu", "1", "--task", "other", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "other"))
    inner = f"{sys.executable} -m gpulockd run -q --wait 5 -- sh -c 'echo $GPULOCKD_LEASE $CUDA_VISIBLE_DEVICES'"
    done = call(daemon, "run", "-q", "--", "sh", "-c", f"echo $GPULOCKD_LEASE $CUDA_VISIBLE_DEVICES; {inner}; {inner}")
    assert done.returncode == 0, done.stderr
    outer, *inners = done.stdout.splitlines()
    assert inners == [outer, outer]
    told = call(daemon, "run", "-q", "--gpu", "0", "--", sys.executable, "-m", "gpulockd", "run", "--", "true")
    assert told.stderr.splitlines()[-1] == "gpulockd: joins the lease of the outer run on GPU 0"
    assert "got GPU" not in told.stderr and "released" not in told.stderr


def test_a_run_inside_a_run_that_asks_for_more_is_refused_at_once(daemon: Daemon) -> None:
    """It would wait for its own parent."""
    inner = f"{sys.executable} -m gpulockd run -q -n 2 -- true"
    done = call(daemon, "run", "-q", "--", "sh", "-c", inner)
    assert done.returncode == 125
    assert "outer" in done.stderr


def test_a_python_program_inside_a_run_joins_it(daemon: Daemon) -> None:
    """Its own gpu_lock() means the GPU that the run has."""
    program = "from gpulockd import gpu_lock\nwith gpu_lock(max_wait_time=5) as lease: print(lease.gpu.uuid)"
    done = call(daemon, "run", "-q", "--gpu", "1", "--", sys.executable, "-c", program)
    other = call(daemon, "run", "-q", "--gpu", "1", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert done.stdout == other.stdout, done.stderr


def test_memory_shares_a_card(daemon: Daemon, start: Start) -> None:
    """Two budgets fit on one card."""
    start("run", "-q", "--gpu", "0", "--memory", "8G", "--task", "half", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "half"))
    assert call(daemon, "run", "-q", "--gpu", "0", "--memory", "8G", "--no-wait", "--", "true").returncode == 0
    assert call(daemon, "run", "-q", "--gpu", "0", "--no-wait", "--", "true").returncode == 75


def test_options_of_the_command_stay_its_own(daemon: Daemon) -> None:
    """Everything after the first word of the command is the command's."""
    done = call(daemon, "run", "-q", "echo", "-n", "--help", "--", "--json")
    assert (done.returncode, done.stdout) == (0, "--help -- --json")


def test_standard_input_and_output_pass_through(daemon: Daemon) -> None:
    """It must fit in a pipe."""
    read, write = os.pipe()
    os.write(write, b"through\n")
    os.close(write)
    done = subprocess.run(
        command("run", "-q", "--", "cat"),
        env=clean_env(GPULOCKD_SOCKET=daemon.socket),
        stdin=read,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(read)
    assert (done.stdout, done.stderr) == ("through\n", "")
