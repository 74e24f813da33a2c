"""What `gpulockd acquire` and `adopt` refuse or give back, so that no GPU is held by nobody, for ever or by itself."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpulockd.daemon.storesocket import pid_behind
from gpulockd.web.unendable import is_of_the_kernel
from tests.daemons import Daemon
from tests.states import until_blocking
from tests.system.commands import Started, ask, call, clean_env, command, leases, one_daemon, queued

ACQUIRE = " ".join(command("acquire"))
RELEASE = " ".join(command("release"))


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


def sh(daemon: Daemon, script: str, shell: str = "bash") -> subprocess.CompletedProcess[str]:
    """Run a script in a shell."""
    env = clean_env(GPULOCKD_SOCKET=daemon.socket)
    return subprocess.run([shell, "-c", script], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [("acquire", "-q"), ("acquire", "--ttl", "1m", "--json"), ("adopt", "PID")])
@pytest.mark.parametrize("where", [">&-", ">/dev/full"])
def test_a_lease_that_nobody_can_be_told_of_is_given_back(
    daemon: Daemon, sleeper: subprocess.Popen[bytes], words: tuple[str, ...], where: str
) -> None:
    """The script takes it for refused, and would leave the GPU held for nobody."""
    line = " ".join(command(*words)).replace("PID", str(sleeper.pid))
    done = sh(daemon, f"{line} {where}; echo $?; {' '.join(command('status'))} --json")
    code, _, rest = done.stdout.partition("\n")
    assert code == "1", done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert not json.loads(rest)["leases"]
    sleeper.kill()


def test_a_lease_whose_reader_has_gone_is_given_back(daemon: Daemon) -> None:
    """As in a pipe to a program that did not start."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        env = clean_env(GPULOCKD_SOCKET=daemon.socket)
        done = subprocess.run(
            command("acquire", "--ttl", "1m"), env=env, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert "given back" in done.stderr
    until_blocking(lambda: not ask(daemon, "leases"))


def test_a_shell_that_holds_without_saying_so_does_not_wait_for_itself(daemon: Daemon) -> None:
    """Its environment says nothing of the lease; the daemon knows of it."""
    done = sh(daemon, f'a=$({ACQUIRE} -q -n 2); {ACQUIRE} -q --wait 60s; echo $?; {RELEASE} "$a"; {ACQUIRE} -q; exit')
    code, told, lease = done.stdout.splitlines()
    assert code == "1"
    assert "already (lease" in done.stderr
    assert "-n 2" in done.stderr
    assert "released GPU 0, GPU 1" in told
    assert lease
    assert done.returncode == 0, "what was released must not stand in the way"


@pytest.mark.parametrize("how", [("acquire", "-q", "--no-wait", "--pid"), ("adopt", "-q")])
def test_a_process_that_is_asked_for_several_times_at_once_holds_once(
    daemon: Daemon, sleeper: subprocess.Popen[bytes], tmp_path: Path, how: tuple[str, ...]
) -> None:
    """All of them would have looked before the first was granted."""
    calls = [Started(daemon, tmp_path, *how, str(sleeper.pid)) for _ in range(3)]
    assert sorted(one.wait() for one in calls) == [0, 1, 1]
    assert len(ask(daemon, "leases")) == 1
    sleeper.kill()


def test_a_second_request_for_a_process_that_waits_is_refused(
    daemon: Daemon, full: Started, sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The first would be granted, and the second wait for it."""
    waiter = Started(daemon, tmp_path, "acquire", "--pid", str(sleeper.pid), "--task", "waiter")
    until_blocking(lambda: queued(daemon, "waiter"))
    refused = call(daemon, "acquire", "--pid", str(sleeper.pid), "--wait", "60s")
    assert refused.returncode == 1
    assert "asks for a GPU already" in refused.stderr
    waiter.close()
    sleeper.kill()


def test_what_nobody_can_end_holds_nothing(daemon: Daemon) -> None:
    """At its limit the daemon would have to end itself, or wait for ever."""
    pids = {"this daemon itself": daemon.process.pid, "what has started this daemon": os.getpid()}
    pids["the store of this daemon"] = pid_behind(daemon.store_url.removeprefix("unix://"))
    for what, pid in pids.items():
        for words in (("acquire", "--no-wait", "--pid", str(pid)), ("adopt", "--gpu", "0", str(pid))):
            refused = call(daemon, *words)
            assert refused.returncode == 1, refused.stderr
            assert what in refused.stderr
            assert "--ttl" in refused.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root may name another user's process")
def test_a_thread_of_the_kernel_holds_nothing(daemon: Daemon) -> None:
    """No signal reaches it."""
    threads = [int(name) for name in os.listdir("/proc") if name.isdigit() and is_of_the_kernel(int(name))]
    if not threads:
        pytest.skip("this PID namespace shows none")
    refused = call(daemon, "adopt", "--gpu", "0", str(min(threads)))
    assert refused.returncode == 1
    assert "a thread of the kernel" in refused.stderr


@pytest.mark.parametrize("before", ["timeout 50", "nice timeout 50", "env timeout 50 nohup"])
def test_a_program_that_only_runs_the_call_is_not_taken_for_the_shell(daemon: Daemon, before: str) -> None:
    """It ends with the call, and the hold would end with it."""
    done = sh(daemon, f"{before} {ACQUIRE} --json; echo $$")
    assert done.returncode == 0, done.stderr
    said, _, pid = done.stdout.strip().rpartition("\n")
    assert json.loads(said)["pid"] == int(pid)
