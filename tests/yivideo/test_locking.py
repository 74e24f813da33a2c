"""YiVideo's lock in its own forms, in programs of this process: who has it, who releases it, and what is said of it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from gpulockd import GpuLockTimeout, LeaseLost, StoreUnavailable, current_lease
from gpulockd.client import process
from gpulockd.compat.yivideo import (
    SmartGpuLockManager,
    get_gpu_lock_config,
    gpu_lock,
    lock_manager,
    release_gpu_lock,
)
from gpulockd.errors import ConfigError
from tests.pools import QUICK, client_here, environment, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until_blocking

KEY = "gpu_lock:0"


@pytest.fixture
def here(server: Server, pool: str) -> Iterator[None]:
    """This process as a client of a pool with one GPU and no daemon."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        yield


def holder(server: Server, pool: str) -> list[tuple[str, str]]:
    """Task and id of who has the lock."""
    return [(lease.job.task, lease.job.task_id) for lease in snapshot(server, pool).leases]


def names_here() -> tuple[str, str]:
    """What the lease of this body is called, and its lock."""
    lease = current_lease()
    assert lease is not None
    return lease.task, lease.gpu.key


class Task:
    """A task with a name, as Celery binds it."""

    name = "paddleocr.perform_ocr"

    @gpu_lock()
    def run(self, seconds: float = 0.0) -> tuple[str, str]:
        """Tell the names of the lease."""
        return names_here()


class Plain:
    """A class without a name."""

    @gpu_lock()
    def detect_subtitle_area(self, video_path: str) -> tuple[str, str]:
        """Tell the names of the lease."""
        return names_here()


@gpu_lock()
def without_arguments() -> tuple[str, str]:
    """Tell the names of the lease."""
    return names_here()


@gpu_lock("gpu_lock:ocr", timeout=1800, poll_interval=0.5)
def with_path(path: Path) -> tuple[str, str]:
    """Tell the names of the lease."""
    return names_here()


@gpu_lock(task="named", priority=3)
async def awaited() -> tuple[str, str]:
    """Tell the names of the lease."""
    return names_here()


async def test_every_form_of_the_decorator_names_its_task(here: None) -> None:
    """D15, D16: zero arguments work, and a file that is an argument is nobody's owner."""
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(Task().run).result() == ("paddleocr.perform_ocr", KEY)
        assert thread.submit(Plain().detect_subtitle_area, "a.mp4").result() == ("detect_subtitle_area", KEY)
        assert thread.submit(without_arguments).result() == ("without_arguments", KEY)
        assert thread.submit(with_path, Path("movie.mp4")).result() == ("with_path", "gpu_lock:ocr")
    assert await awaited() == ("named", KEY)
    assert without_arguments.__name__ == "without_arguments"


def test_what_cannot_be_decorated_is_refused() -> None:
    """Where it is written, not at the first call."""
    with pytest.raises(TypeError, match="parentheses"):
        gpu_lock(without_arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="generator"):

        @gpu_lock()
        def pages() -> Iterator[int]:
            yield 1


def test_a_body_that_fails_gives_its_lock_back(here: None, server: Server, pool: str) -> None:
    """A-121: and its own exception comes out."""

    @gpu_lock()
    def fails() -> None:
        raise OSError("no frame")

    with pytest.raises(OSError, match="no frame"):
        fails()
    assert holder(server, pool) == []


def test_a_wait_that_is_too_long_has_the_documented_text(here: None) -> None:
    """Contradiction 3: people look for the prefix and for both phrases."""

    @gpu_lock(max_wait_time=0.2)
    def late() -> None:
        pytest.fail("it has no lock")

    with ThreadPoolExecutor(1) as other, gpu_lock(task="whisper"):
        with pytest.raises(GpuLockTimeout) as caught:
            other.submit(late).result()
    text = str(caught.value)
    assert text.startswith("GPU_LOCK_TIMEOUT: 任务 late 无法获取锁 'gpu_lock:0'，任务放弃执行 (无法获取GPU锁: GPU 0")
    assert "held by whisper" in text and caught.value.waited_s >= 0.2


def test_the_documented_manual_form(here: None, server: Server, pool: str) -> None:
    """A-024; D6: a fraction of a second in `lock_timeout` is a time like any other."""
    manager = SmartGpuLockManager()
    config = get_gpu_lock_config() | {"lock_timeout": 600.5, "use_event_driven": True, "fallback_timeout": 30}
    assert manager.acquire_lock_with_smart_polling("manual", KEY, config)
    assert [task for task, _ in holder(server, pool)] == ["manual"]
    assert not manager.release_lock("another", KEY)
    assert manager.release_lock("manual", KEY)
    assert not manager.release_lock("manual", KEY)
    assert manager.exception_stats == {
        "normal_release_failures": 0,
        "emergency_releases": 0,
        "release_script_errors": 0,
        "ownership_violations": 2,
    }
    assert holder(server, pool) == []


@pytest.mark.parametrize("config", ["x", 5, [("max_wait_time", 1)]])
def test_a_configuration_that_is_no_mapping_is_refused_in_words(config: Any) -> None:
    """An AttributeError of ours says nothing to who passed the wrong thing."""
    with pytest.raises(ConfigError, match="no mapping"):
        SmartGpuLockManager().acquire_lock_with_smart_polling("manual", KEY, config)


def test_the_thread_that_has_a_lock_joins_it(here: None, server: Server, pool: str) -> None:
    """D17: nested use does not wait for itself. B-601 as it is written: ten acquisitions and no release between."""
    manager, config = SmartGpuLockManager(), {"poll_interval": 0.5, "max_wait_time": 300}
    for _ in range(10):
        assert manager.acquire_lock_with_smart_polling(task_name="test_task", lock_key=KEY, config=config)
    assert len(holder(server, pool)) == 1
    assert without_arguments()[1] == KEY
    with ThreadPoolExecutor(1) as other:  # the same name in another thread is another worker of it
        busy = other.submit(manager.acquire_lock_with_smart_polling, "test_task", KEY, {"max_wait_time": 0.2})
        assert busy.result() is False
    for _ in range(10):
        assert len(holder(server, pool)) == 1
        assert manager.release_lock("test_task", KEY)
    assert holder(server, pool) == []


def test_a_run_releases_its_own_lease_only(here: None, server: Server, pool: str) -> None:
    """D2: a name is not a run; who has lost its lock takes it from nobody."""
    stale, lost = threading.Event(), threading.Event()

    def first() -> tuple[bool, bool]:
        assert lock_manager.acquire_lock_with_smart_polling("ocr", KEY, {})
        stale.set()
        assert lost.wait(30)
        return lock_manager.release_lock("ocr", KEY), lock_manager.release_lock("ocr", KEY)

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        ending = one.submit(first)
        assert stale.wait(30)
        assert release_gpu_lock()  # an operator takes it
        assert two.submit(lock_manager.acquire_lock_with_smart_polling, "ocr", KEY, {"max_wait_time": 60}).result()
        sessions = process.belongings().sessions
        until_blocking(
            lambda: len([e for session in sessions.values() for e in session.table.held()]) == 1
        )  # it has heard
        lost.set()
        assert ending.result() == (False, False)
        assert [task for task, _ in holder(server, pool)] == ["ocr"]
        run = process.belongings().sessions  # the second one's lease, by the id of its run, from any thread
        id = next(f"ocr#{e.token}" for session in run.values() for e in session.table.held())
        assert lock_manager.release_lock("ocr", KEY) is False
        assert lock_manager.release_lock(id, KEY) is True
    assert holder(server, pool) == []


def test_a_forked_child_releases_nothing_of_its_parent(here: None, server: Server, pool: str) -> None:
    """Celery forks; what the child inherits is not its own."""
    with gpu_lock(task="parent"):
        pid = os.fork()
        if pid == 0:
            os._exit(1 if lock_manager.release_lock("parent", KEY) else 0)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert [task for task, _ in holder(server, pool)] == ["parent"]


@pytest.mark.filterwarnings("ignore:(?s).*SoftLimitError:pytest.PytestUnraisableExceptionWarning")  # in a destructor
def test_a_soft_time_limit_while_it_begins_leaves_no_lock(here: None, server: Server, pool: str) -> None:
    """Celery's raises in a signal handler, at any bytecode: also between the lock and what is noted of it."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    class SoftLimitError(Exception):
        pass

    def limit(*_: object) -> None:
        raise SoftLimitError

    @gpu_lock()
    def body() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, limit)
    try:
        body()
        for _ in range(40):
            # CPython's own locks may complain when a signal handler raises inside them.
            with contextlib.suppress(SoftLimitError, RuntimeError):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 2e-3))
                body()
            signal.setitimer(signal.ITIMER_REAL, 0)
            until_blocking(lambda: not holder(server, pool))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("where", ["leave", "call", "_begin", "call_soon_threadsafe"])
def test_a_soft_time_limit_while_it_ends_leaves_no_lock(here: None, server: Server, pool: str, where: str) -> None:
    """The release is on its way when the handler raises: whatever it was about to call, the portal does the rest."""

    class SoftLimitError(Exception):
        pass

    def limit(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == where:
            sys.settrace(None)
            raise SoftLimitError

    @gpu_lock()
    def body() -> None:
        sys.settrace(limit)

    try:
        with pytest.raises(SoftLimitError):
            body()
    finally:
        sys.settrace(None)
    until_blocking(lambda: not holder(server, pool))


def test_a_body_may_release_its_lock_early(here: None, server: Server, pool: str) -> None:
    """The block then ends without a second release."""
    with gpu_lock(task="early"):
        assert lock_manager.release_lock("early", KEY, "task_failure")
        assert holder(server, pool) == []
        assert not lock_manager.release_lock("early", KEY)


def test_an_operator_takes_a_lock_without_a_name(
    here: None, server: Server, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A-097, A-114: in YiVideo it needs the holder's name, and always fails."""
    caplog.set_level(logging.INFO)
    assert not release_gpu_lock()
    taken = threading.Event()

    def body() -> str:
        try:
            with gpu_lock(task="stuck", task_id="s-1") as lease:
                taken.set()
                assert lease.lost.wait_blocking(30)
        except LeaseLost as lost:
            return lost.reason
        return ""

    with ThreadPoolExecutor(1) as other:
        ended = other.submit(body)
        assert taken.wait(30)
        assert not release_gpu_lock(KEY, "somebody else")
        assert not lock_manager.release_lock("s-1", KEY)  # not behind the back of a body that runs
        assert release_gpu_lock(KEY, "s-1")
        assert ended.result() == "operator"
    assert [record.name for record in caplog.records if record.message == f"成功强制释放GPU锁 {KEY}"] == [
        "gpu_lock_monitor"
    ]


def test_a_store_that_is_away_never_means_unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """D18, D19: the body does not run, and the manager says no within the limit."""
    for name, value in environment("unix:///nonexistent/s.sock", "away", QUICK).items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(StoreUnavailable):
            without_arguments()
        assert lock_manager.acquire_lock_with_smart_polling("ocr", KEY, {"max_wait_time": 0.1}) is False
        assert lock_manager.get_lock_health()["status"] == "critical"
        with pytest.raises(StoreUnavailable):
            lock_manager.get_statistics()
    finally:
        process.say_goodbye()


def test_what_a_body_leaves_is_freed_after_the_release(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """D22: the next one does not wait for it."""
    held: list[bool] = []

    class Cuda:
        @staticmethod
        def is_initialized() -> bool:
            return True

        @staticmethod
        def empty_cache() -> None:
            held.append(bool(process.belongings().sessions) and any_held())

    class Torch:
        cuda = Cuda

    def any_held() -> bool:
        return any(session.table.held() for session in process.belongings().sessions.values())

    modules: dict[str, Any] = {"torch": Torch}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    without_arguments()
    until_blocking(lambda: held)
    assert held == [False]
