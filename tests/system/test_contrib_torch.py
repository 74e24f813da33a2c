"""What torch programs use: progress, checkpoints, devices, cleaning up, and worker processes that outlive their parent.

Real processes and a real daemon; torch itself only where it is installed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpulockd import ConfigError, GpuLockTimeout, LeaseLost, gpu_lock
from gpulockd.client.process import say_goodbye
from gpulockd.contrib.torch import device, stops_on, track
from tests.daemons import Daemon
from tests.pools import client_here, offer, simulated
from tests.servers import Server
from tests.states import until_blocking
from tests.system.commands import clean_env, command, leases, lives, one_daemon

pytestmark = pytest.mark.timeout(300)  # a busy machine takes seconds for each start of Python

HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """Two simulated GPUs. The grace is long: who is slow to leave a lease that was taken is ended, and that is us."""
    with one_daemon(config={"settle": {"grace": 60}}) as running:
        yield running


@pytest.fixture
def here(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """This process is a client of the daemon."""
    monkeypatch.setenv("GPULOCKD_SOCKET", daemon.socket)
    yield daemon
    say_goodbye()


@contextmanager
def program(daemon: Daemon, text: str, *before: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python text, with `before` in front of its command; it and what it started is ended afterwards."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", textwrap.dedent(text)],
        env=clean_env(GPULOCKD_SOCKET=daemon.socket, **env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def facts(process: subprocess.Popen[str]) -> Any:
    """The next line that a program prints."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def followed(daemon: Daemon, pids: list[int]) -> bool:
    """Whether the guard follows these processes: it looks for children each second, and has a pidfd of each."""
    known = set()
    for info in Path(f"/proc/{daemon.process.pid}/fdinfo").iterdir():
        with suppress(OSError):
            known |= {int(line.split()[1]) for line in info.read_text().splitlines() if line.startswith("Pid:")}
    return known.issuperset(pids)


def ask_to_stop(daemon: Daemon, lease: str) -> None:
    """As an operator would."""
    answer = asyncio.run(daemon.ask("PATCH", f"/api/v1/leases/{lease}", {"stop": True}))
    assert answer.status == 200, answer.body


def test_progress_of_a_loop_is_seen_by_all(here: Daemon) -> None:
    """The page and `gpulockd status` show how far a training is."""
    with gpu_lock(task="epochs") as lease:
        steps = track(lease, range(4))
        for step in steps:
            if step == 1:
                until_blocking(lambda: leases(here, "epochs")[0]["note"] == "step 1 of 4")
                assert leases(here, "epochs")[0]["percent"] == 25
        until_blocking(lambda: leases(here, "epochs")[0]["percent"] == 100)
        assert (steps.done, steps.total, steps.stopped) == (4, 4, False)


async def test_a_task_tracks_too(here: Daemon) -> None:
    """The same words inside `async with`."""
    async with gpu_lock(task="async") as lease:
        assert list(lease.track("abc")) == ["a", "b", "c"]


def test_a_loader_without_a_length_has_no_percents(here: Daemon) -> None:
    """A stream of data; the steps are counted all the same."""
    with gpu_lock(task="stream") as lease:
        steps = track(lease, iter("abc"), start=10)
        for _ in steps:
            continue
        assert (steps.done, steps.total) == (13, None)
        until_blocking(lambda: leases(here, "stream")[0]["note"] == "step 11")
        assert leases(here, "stream")[0]["percent"] is None


def test_a_resumed_loop_counts_what_was_done_before(here: Daemon) -> None:
    """Half of it was done by the run that saved the checkpoint."""
    with gpu_lock(task="resumed") as lease:
        for _ in track(lease, range(5), start=5):
            continue
        # Seldom steps are told; on a slow machine a later one than the first too.
        until_blocking(lambda: re.fullmatch(r"step ([6-9]|10) of 10", leases(here, "resumed")[0]["note"] or ""))


def test_a_loop_ends_cleanly_when_its_holder_is_asked_to_stop(here: Daemon) -> None:
    """The batch that was begun is finished, the work is saved once, and no exception comes."""
    saved: list[int] = []
    with gpu_lock(task="stopped") as lease:
        steps = track(lease, range(1000), on_stop=lambda: saved.append(steps.done))
        for step in steps:
            if step == 2:
                ask_to_stop(here, lease.id)
                assert lease.stopping.wait_blocking(30)
        assert (steps.stopped, steps.done, saved) == (True, 3, [3])
    assert not leases(here, "stopped")


def test_a_request_to_stop_at_the_last_item_comes_too_late(here: Daemon) -> None:
    """All is done, so there is nothing to save for another time."""
    with gpu_lock(task="late") as lease:
        steps = track(lease, range(2), on_stop=lambda: pytest.fail("nothing is left to do"))
        for step in steps:
            if step == 1:
                lease.stopping.set()
        assert not steps.stopped


def test_a_loop_ends_with_the_loss_of_its_lease(here: Daemon) -> None:
    """A sync body cannot be interrupted, but its loop can."""
    with pytest.raises(LeaseLost):
        with gpu_lock(task="robbed") as lease:
            for _ in track(lease, range(1000)):
                asyncio.run(here.ask("DELETE", f"/api/v1/leases/{lease.id}"))
                assert lease.lost.wait_blocking(30)


def test_a_store_that_is_away_does_not_delay_the_loop(valkey_server: Server, pool: str) -> None:
    """Progress is a courtesy; the card must not wait for it."""
    offer(valkey_server, pool, simulated(1))
    with client_here(valkey_server.url, pool):
        with gpu_lock() as lease:
            valkey_server.pause()
            try:
                assert sum(1 for _ in track(lease, range(1000))) == 1000
            finally:
                valkey_server.resume()


def test_sigterm_asks_a_training_to_stop(here: Daemon) -> None:
    """What `gpulockd run` sends at the soft limit must not lose the work; afterwards the signal is what it was."""
    before = signal.getsignal(signal.SIGTERM)
    with gpu_lock(task="sigterm") as lease, stops_on(lease):
        os.kill(os.getpid(), signal.SIGTERM)
        assert lease.stopping.wait_blocking(30)
        assert list(track(lease, range(3))) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("inside", [True, False])
def test_the_signal_of_a_stop_that_was_heeded_already_ends_nobody(
    here: Daemon, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """In a run the lease says so at once, and the wrapper's SIGTERM comes when it comes: the work is saved by then."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with gpu_lock(task="heeded") as lease:
            if inside:
                monkeypatch.setenv("GPULOCKD_LEASE", lease.id)
                monkeypatch.setenv("GPULOCKD_TOKEN", str(lease.token))
            with stops_on(lease):
                lease.stopping.set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ([] if inside else [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard[-1:] == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


ENDS_BY_ITSELF = """
import atexit, os, signal, sys
atexit.register(lambda: print("ignored" if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN else "deadly"))
from gpulockd import gpu_lock
from gpulockd.contrib.torch import stops_on
with gpu_lock(task="heeded") as lease:
    os.environ["GPULOCKD_LEASE"], os.environ["GPULOCKD_TOKEN"] = lease.id, str(lease.token)
    with stops_on(lease):
        lease.stopping.set()
sys.exit(75)
"""


def test_the_signal_of_a_stop_does_not_end_an_interpreter_that_ends_by_itself(here: Daemon) -> None:
    """Python takes its handlers away before it is through: in 25 of 40 runs the exit code said that it was cut off."""
    env = clean_env(GPULOCKD_SOCKET=here.socket)
    ended = subprocess.run([sys.executable, "-c", ENDS_BY_ITSELF], env=env, timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (75, "ignored\n"), ended.stderr


STUB = """
import sys, threading, types
torch = types.ModuleType("torch")
class Card:
    uuid = "1"
torch.cuda = types.SimpleNamespace(
    is_initialized=lambda: True, is_available=lambda: True, device_count=lambda: 2,
    empty_cache=lambda: (print('"cleaning"', flush=True), threading.Event().wait()),
    get_device_properties=lambda place: types.SimpleNamespace(uuid=uuids[place]),
)
sys.modules["torch"] = torch
"""
"""A torch whose driver hangs."""


def test_cleaning_up_never_delays_the_next_holder_nor_the_exit(here: Daemon) -> None:
    """A driver that hangs in `empty_cache` keeps nobody from the card, and its process still ends."""
    text = (
        STUB
        + """
import json
from gpulockd import gpu_lock
from gpulockd.contrib.torch import clean_up
with gpu_lock("gpu_lock:0", cleanup=clean_up):
    pass
print(json.dumps("released"), flush=True)
sys.stdin.readline()
"""
    )
    with program(here, text) as cleaner:
        assert {facts(cleaner), facts(cleaner)} == {"cleaning", "released"}
        with gpu_lock("gpu_lock:0", max_wait_time="30s"):
            assert cleaner.poll() is None
        cleaner.communicate("end\n", timeout=60)
        assert cleaner.returncode == 0


def test_without_torch_there_is_nothing_to_clean_and_nothing_is_loaded(here: Daemon) -> None:
    """The helper must not load torch into a program that does without it: that takes seconds."""
    text = """
    import json, sys
    from gpulockd import gpu_lock
    from gpulockd.contrib.torch import clean_up, device
    with gpu_lock(cleanup=clean_up) as lease:
        where = device(lease)
    print(json.dumps([where, "torch" in sys.modules]))
    """
    with program(here, text) as done:
        assert facts(done) == ["cpu", False]


def test_the_device_follows_what_the_process_may_see(here: Daemon) -> None:
    """Under `gpulockd run` the lease's second card may be `cuda:0`, and CUDA may count in another order."""
    text = (
        STUB
        + """
import json, os
from gpulockd import ConfigError, gpu_lock
from gpulockd.contrib.torch import device
found = []
with gpu_lock(count=2) as lease:
    uuids = [gpu.uuid.removeprefix("GPU-") for gpu in reversed(lease.gpus)]
    found.append(device(lease))
    os.environ["LOCAL_RANK"] = "1"
    found.append(device(lease))
    os.environ["CUDA_VISIBLE_DEVICES"] = lease.gpus[1].uuid
    found.append(device(lease))
    try:
        device(lease, 0)
    except ConfigError as refused:
        found.append("CUDA_VISIBLE_DEVICES" in str(refused))
print(json.dumps(found))
"""
    )
    with program(here, text) as done:
        assert facts(done) == ["cuda:1", "cuda:0", "cuda:0", True]


def test_more_processes_than_gpus_is_refused(here: Daemon) -> None:
    """Two ranks on one card would both be slow, and the message says what to ask for."""
    with gpu_lock() as lease:
        with pytest.raises(ConfigError, match=r"gpulockd run -n 2"):
            device(lease, 1)


WORKERS = """
import json, multiprocessing, os, sys, time
from gpulockd import gpu_lock
def work(): time.sleep(600)
with gpu_lock("gpu_lock:0", task="loader") as lease:
    workers = [multiprocessing.get_context(how).Process(target=time.sleep, args=(600,)) for how in ("fork", "spawn")]
    for worker in workers: worker.start()
    print(json.dumps([os.getpid(), [worker.pid for worker in workers]]), flush=True)
    time.sleep(600)
"""
"""As a DataLoader with two workers; the lease is held by their parent."""

LAUNCHER = """
import json, os, subprocess, sys, time
rank = [sys.executable, "-c", "import os; from gpulockd import gpu_lock\\nwith gpu_lock('gpu_lock:0') as l:\\n"
        " print(l.token, flush=True); import time; time.sleep(600)"]
ranks = [subprocess.Popen(rank, start_new_session=True, stdout=subprocess.PIPE, text=True) for _ in range(2)]
tokens = {int(rank.stdout.readline()) for rank in ranks}
assert tokens == {int(os.environ["GPULOCKD_TOKEN"])}, tokens
print(json.dumps([os.getpid(), [rank.pid for rank in ranks]]), flush=True)
time.sleep(600)
"""
"""As torchrun: each rank is a process in a session of its own and joins the lease of the run."""


def test_the_workers_of_a_loader_count_as_its_run(here: Daemon) -> None:
    """Their parent is killed and they are still on the card: the next holder begins when they are gone."""
    with program(here, WORKERS) as holder:
        parent, children = facts(holder)
        until_blocking(lambda: followed(here, children))
        os.kill(parent, signal.SIGKILL)
        with gpu_lock("gpu_lock:0", max_wait_time="60s"):
            assert not any(lives(child) for child in children)


def test_ranks_join_the_lease_of_their_run_and_hold_it_on(here: Daemon) -> None:
    """Their launcher is killed and they train on: the card is theirs until the last of them has ended."""
    with program(here, LAUNCHER, *command("run", "-q", "--gpu", "0", "--task", "ranks", "--")) as holder:
        launcher, ranks = facts(holder)
        os.kill(launcher, signal.SIGKILL)
        os.kill(ranks[0], signal.SIGKILL)
        until_blocking(lambda: not lives(launcher) and not lives(ranks[0]))
        with pytest.raises(GpuLockTimeout):
            with gpu_lock("gpu_lock:0", max_wait_time="0.5s"):
                pytest.fail("a rank is still on it")
        os.kill(ranks[1], signal.SIGKILL)
        with gpu_lock("gpu_lock:0", max_wait_time="60s"):
            assert not lives(ranks[1])


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
def test_a_real_loader_and_a_real_model(here: Daemon) -> None:
    """The same with the real thing."""
    text = """
    import json, torch
    from gpulockd import gpu_lock
    from gpulockd.contrib.torch import clean_up, device, track
    data = torch.utils.data.TensorDataset(torch.arange(64.0))
    with gpu_lock(cleanup=clean_up) as lease:
        loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=2)
        total = sum(float(batch.to(device(lease)).sum()) for (batch,) in track(lease, loader))
    print(json.dumps(total))
    """
    with program(here, text) as done:
        assert facts(done) == sum(range(64))
