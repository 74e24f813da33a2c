"""`gpulockd acquire`, `renew`, `adopt` and `progress`: holding without a wrapper, with a real daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import Started, ask, call, clean_env, command, leases, one_daemon, queued

ACQUIRE = " ".join(command("acquire"))
RELEASE = " ".join(command("release"))
HEAVY = ("redis", "anyio", "msgspec", "asyncio", "structlog", "starlette", "hiredis", "httpx")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One daemon with two simulated GPUs."""
    with one_daemon() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left(daemon: Daemon) -> Iterator[None]:
    """Every test leaves both GPUs free."""
    yield
    until_blocking(lambda: not ask(daemon, "leases") and all(gpu["state"] == "ready" for gpu in ask(daemon, "gpus")))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that may hold."""
    with subprocess.Popen(["sleep", "300"], env=clean_env()) as process:
        yield process
        process.kill()


@pytest.fixture
def full(daemon: Daemon, tmp_path: Path) -> Iterator[Started]:
    """Both GPUs are held."""
    holder = Started(daemon, tmp_path, "run", "-q", "-n", "2", "--task", "holder", "--", "sleep", "300")
    until_blocking(lambda: leases(daemon, "holder"))
    yield holder
    holder.close()


def said(daemon: Daemon, *words: str) -> Any:
    """What a command prints as JSON."""
    done = call(daemon, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sh(daemon: Daemon, script: str, shell: str = "bash") -> subprocess.CompletedProcess[str]:
    """Run a script in a shell."""
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    return subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_a_shell_holds_until_it_ends(daemon: Daemon, shell: str) -> None:
    """A script that cannot be wrapped says one line, and forgets nothing when it dies."""
    script = f"""
        eval "$({ACQUIRE} --export --task script)"
        echo "$$ $GPULOCKD_LEASE $CUDA_VISIBLE_DEVICES"
        {" ".join(command("status"))} --json
    """
    done = sh(daemon, script, shell)
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    pid, lease, uuid = first.split()
    (held,) = json.loads(rest)["leases"]
    assert (held["id"], held["pid"], held["task"]) == (lease, int(pid), "script")
    assert uuid.startswith("GPU-")
    assert f"as long as pid {pid} lives" in done.stderr


def test_a_copy_of_the_shell_made_for_the_call_is_not_taken_for_it(daemon: Daemon) -> None:
    """`$( … )` with more than one command forks a copy, which ends with the call."""
    done = sh(daemon, f'x=$({ACQUIRE} --json; true); echo $$ "$x"')
    assert done.returncode == 0, done.stderr
    pid, _, rest = done.stdout.partition(" ")
    assert json.loads(rest)["pid"] == int(pid)


def test_a_subshell_that_was_written_holds_by_itself(daemon: Daemon) -> None:
    """`( … )` says where the hold ends."""
    done = sh(daemon, f'( eval "$({ACQUIRE} -q --export)"; echo $BASHPID ); {" ".join(command("status"))} --json')
    assert done.returncode == 0, done.stderr
    until_blocking(lambda: not ask(daemon, "leases"))


def test_release_gives_it_back_before_the_shell_ends(daemon: Daemon) -> None:
    """And the GPU goes straight on: the shell has said that it is done."""
    done = sh(daemon, f'lease=$({ACQUIRE} -q) && {RELEASE} "$lease" && {" ".join(command("events"))} --json')
    assert done.returncode == 0, done.stderr
    assert "released GPU" in done.stdout
    ends = [line for line in done.stdout.splitlines() if "lock_released" in line]
    assert ends
    assert "lock_revoked" not in done.stdout


def test_a_shell_that_holds_does_not_wait_for_more(daemon: Daemon) -> None:
    """Two such shells would wait for each other for ever."""
    done = sh(
        daemon, f'eval "$({ACQUIRE} -q --export)"; {ACQUIRE}; echo $?; {RELEASE} $GPULOCKD_LEASE; {ACQUIRE}; exit'
    )
    assert "is held here already" in done.stderr
    assert done.stdout.splitlines()[0] == "1"
    assert done.returncode == 0, "a pair whose lease has ended must not stand in the way"


def test_a_named_process_holds_as_long_as_it_lives(daemon: Daemon, sleeper: subprocess.Popen[bytes]) -> None:
    """Its end is told by the kernel, so nothing has to be cleaned up."""
    told = said(daemon, "acquire", "--pid", str(sleeper.pid), "-n", "2")
    assert (len(told["gpus"]), told["pid"], told["ttl_s"]) == (2, sleeper.pid, None)
    assert told["env"]["CUDA_VISIBLE_DEVICES"] == ",".join(gpu["uuid"] for gpu in told["gpus"])
    assert [lease["task"] for lease in ask(daemon, "leases")] == ["sleep"]
    sleeper.kill()
    until_blocking(lambda: not ask(daemon, "leases"))


def test_a_gpu_is_named_by_its_uuid(daemon: Daemon, sleeper: subprocess.Popen[bytes]) -> None:
    """It is what other tools print; taken for a name without hardware it would lock nothing."""
    uuid = ask(daemon, "gpus")[1]["uuid"]
    told = said(daemon, "acquire", "--pid", str(sleeper.pid), "--gpu", uuid)
    assert [gpu["index"] for gpu in told["gpus"]] == [1]
    wrong = call(daemon, "acquire", "--ttl", "5s", "--gpu", "GPU-no-such")
    assert wrong.returncode == 2
    assert "no GPU of this pool has the UUID" in wrong.stderr
    sleeper.kill()


def test_a_hold_for_a_time_is_renewed_and_ends(daemon: Daemon) -> None:
    """For what has no process: it must end by itself."""
    told = said(daemon, "acquire", "--ttl", "90s")
    assert (told["pid"], told["ttl_s"]) == (None, 90.0)
    assert 60 < said(daemon, "renew", told["lease"])["ends_in_s"] <= 90
    renewed = call(daemon, "renew", told["lease"], "--ttl", "10m").stderr
    assert re.search(r" for (10:00|9:\d\d) from now", renewed), "less the moment that the answer took"
    done = call(daemon, "renew", "--ttl", "500ms", GPULOCKD_LEASE=told["lease"])
    # A machine that stalls for as long lets it end before it is told.
    assert done.returncode == 0 or "has ended" in done.stderr, done.stderr
    assert re.search(r"for 0\.\d s from now|has ended", done.stderr)
    until_blocking(lambda: not ask(daemon, "leases"))
    ended = call(daemon, "renew", told["lease"])
    assert ended.returncode == 1
    assert "has ended" in ended.stderr


def test_only_what_was_asked_for_a_time_is_renewed(daemon: Daemon, full: Started) -> None:
    """A run lasts as long as its command."""
    refused = call(daemon, "renew", leases(daemon, "holder")[0]["id"])
    assert refused.returncode == 1
    assert "has no ttl" in refused.stderr
    assert "acquire --ttl 10m" in refused.stderr and "{" not in refused.stderr


def test_busy_and_waited_too_long_are_1_and_say_who_holds(daemon: Daemon, full: Started) -> None:
    """The answer is no, and it is no error."""
    for words, hint in ((("--no-wait",), "leave --no-wait out"), (("--wait", "200ms"), "wait longer with --wait")):
        refused = call(daemon, "acquire", "--ttl", "1m", *words)
        assert refused.returncode == 1, refused.stderr
        assert refused.stdout == ""
        assert "held by holder" in refused.stderr
        assert hint in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_wait(daemon: Daemon, full: Started, tmp_path: Path, number: signal.Signals) -> None:
    """And the place in the queue is free."""
    waiter = Started(daemon, tmp_path, "acquire", "--ttl", "1m", "--task", "waiter")
    until_blocking(lambda: queued(daemon, "waiter"))
    waiter.process.send_signal(number)
    assert waiter.wait() == 128 + number
    until_blocking(lambda: not queued(daemon, "waiter"))
    assert not leases(daemon, "waiter")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("acquire", "--pid", "1"), "--pid 1"),
        (("acquire", "--pid", "77", "--ttl", "5s"), "contradict"),
        (("acquire", "--json", "--export"), "contradict"),
        (("acquire", "--ttl", "soon"), "duration"),
        (("acquire", "-n", "3", "--ttl", "1m"), "has 2 GPUs"),
        (("renew",), "GPULOCKD_LEASE"),
        (("progress", "45"), "GPULOCKD_LEASE"),
        (("progress", "101", "--lease", "x"), "0 to 100"),
        (("progress", "1/0", "--lease", "x"), "0 to 100"),
        (("adopt", "1"), "1"),
        (("adopt", "x"), "invalid int"),
    ],
)
def test_what_cannot_be_is_2_and_says_what_to_write(daemon: Daemon, words: tuple[str, ...], named: str) -> None:
    """A usage error must never be taken for a held GPU."""
    done = call(daemon, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr


@pytest.mark.parametrize(
    "words",
    [("acquire", "--ttl", "1m"), ("renew", "x"), ("progress", "4", "--lease", "x"), ("adopt", str(os.getpid()))],
)
def test_without_a_daemon_they_exit_with_3(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Scripts tell "not running" from "no"."""
    done = call(None, *words, GPULOCKD_SOCKET=str(tmp_path / "api.sock"))
    assert done.returncode == 3
    assert "gpulockd serve" in done.stderr


def test_a_process_that_is_not_there_is_said(daemon: Daemon) -> None:
    """A typing error must not hold a GPU for nobody."""
    for words in (("acquire", "--pid", "4194303"), ("adopt", "4194303")):
        done = call(daemon, *words)
        assert done.returncode == 1, done.stderr
        assert "no such process" in done.stderr or "no process" in done.stderr


def test_a_running_process_is_adopted_on_the_gpu_that_it_was_told_to_use(daemon: Daemon) -> None:
    """Who started it by hand has said it in its environment."""
    uuid = ask(daemon, "gpus")[1]["uuid"]
    with subprocess.Popen(["sleep", "300"], env=clean_env(CUDA_VISIBLE_DEVICES=uuid)) as process:
        try:
            told = said(daemon, "adopt", str(process.pid), "--task", "by-hand")
            assert [gpu["uuid"] for gpu in told["gpus"]] == [uuid]
            assert [(lease["task"], lease["pid"]) for lease in ask(daemon, "leases")] == [("by-hand", process.pid)]
            again = call(daemon, "adopt", str(process.pid))
            assert again.returncode == 1
            assert "holds GPU 1 already" in again.stderr
        finally:
            process.kill()


def test_a_busy_gpu_is_not_adopted(daemon: Daemon, full: Started, sleeper: subprocess.Popen[bytes]) -> None:
    """Two would be on it, and nobody would know."""
    refused = call(daemon, "adopt", str(sleeper.pid), "--gpu", "0")
    assert refused.returncode == 1
    assert "held by holder" in refused.stderr
    assert "--gpu" in refused.stderr
    assert sleeper.poll() is None
    sleeper.kill()


def test_a_script_inside_a_run_says_how_far_it_is(daemon: Daemon, tmp_path: Path) -> None:
    """People look at the list instead of asking."""
    progress = " ".join(command("progress"))
    run = Started(daemon, tmp_path, "run", "-q", "--task", "frames", "-c", f"{progress} 9/20 'frame 9'; exec sleep 300")
    until_blocking(lambda: leases(daemon, "frames") and leases(daemon, "frames")[0]["percent"] is not None)
    (lease,) = leases(daemon, "frames")
    assert (lease["percent"], lease["note"]) == (45.0, "frame 9")
    assert said(daemon, "progress", "50%", "--lease", lease["id"])["note"] == "frame 9"
    assert "50 %" in call(daemon, "status").stdout
    run.close()
    until_blocking(lambda: not leases(daemon, "frames"))
    ended = call(daemon, "progress", "51", "--lease", lease["id"])
    assert ended.returncode == 1
    assert "has ended" in ended.stderr
    assert call(daemon, "progress", "52", GPULOCKD_DISABLE="1").returncode == 0


@pytest.mark.parametrize(
    "words", [("acquire", "--ttl", "50ms"), ("renew", "x"), ("adopt", "4194303"), ("progress", "1", "--lease", "x")]
)
def test_they_load_the_standard_library_only(daemon: Daemon, words: tuple[str, ...]) -> None:
    """They stand in loops."""
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    traced = [sys.executable, "-X", "importtime", "-m", "gpulockd", *words]
    done = subprocess.run(traced, env=env, capture_output=True, text=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not loaded.intersection(HEAVY)
