"""`gpu_lock` in all its forms: block, decorator, by hand; its lease, its errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from gpulockd import (
    ConfigError,
    GpuLockTimeout,
    ImpossibleRequest,
    Lease,
    LeaseLost,
    StoreUnavailable,
    gpu_lock,
    lock_events,
)
from gpulockd.events import LockAcquired, LockReleased
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import BlockingStore
from tests.pools import QUICK, client_here, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until, until_blocking


def revoke(server: Server, pool: str) -> None:
    """End the one lease of the pool as an operator does."""
    lease = snapshot(server, pool).leases[0]
    store = BlockingStore(server.url, deadline_s=5)
    store.ask(verbs.end(PoolKeys(pool), session="", id=lease.id, token=lease.token, reason="revoked"))
    store.close()


async def test_a_lease_tells_what_it_is(server: Server, pool: str) -> None:
    """The fields that programs rely on."""
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        async with gpu_lock(task="whisper", task_id="w-17") as lease:
            assert (lease.gpu.index, lease.gpu.uuid, lease.gpu.device) == (0, "GPU-test-0", "cuda:0")
            assert (lease.task, lease.task_id, lease.pool) == ("whisper", "w-17", pool)
            assert lease.env["CUDA_VISIBLE_DEVICES"] == "GPU-test-0"
            assert lease.env["GPULOCKD_TOKEN"] == str(lease.token)
            assert not lease.lost.is_set() and not lease.stopping.is_set()
            assert "held" in repr(lease)
            await lease.progress(45.0, "frame 100")
            record = snapshot(server, pool).leases[0]
            assert (record.percent, record.note, record.job.task) == (45.0, "frame 100", "whisper")
            with pytest.raises(ValueError, match="0 to 100"):
                await lease.progress(101)
        assert not lease.living and "ended" in repr(lease)


async def test_a_message_that_is_no_text_disturbs_nobody(server: Server, pool: str) -> None:
    """The name of a file may be any bytes; all tasks of a program share the line on which it is told."""
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        async with gpu_lock(gpus=[0]) as lease, asyncio.TaskGroup() as tasks:
            for n in range(5):
                tasks.create_task(lease.progress(n, "caf\udce9.wav"))
            for _ in range(5):
                tasks.create_task(_pair(1))
        assert not lease.lost.is_set()


async def _pair(gpu: int) -> None:
    async with gpu_lock(gpus=[gpu]):
        await asyncio.sleep(0)


async def test_decorators_hold_the_lock_around_every_kind_of_function(server: Server, pool: str) -> None:
    """def, async def, methods of both kinds, without arguments; the task is named after the function."""
    offer(server, pool, simulated(1))

    class Model:
        @gpu_lock()
        def predict(self, x: int) -> tuple[int, str]:
            return x, snapshot(server, pool).leases[0].job.task

        @gpu_lock()
        async def predict_soon(self, x: int) -> tuple[int, str]:
            return x, snapshot(server, pool).leases[0].job.task

    @gpu_lock()
    def plain() -> str:
        return snapshot(server, pool).leases[0].job.task

    @gpu_lock(task="named")
    async def soon() -> str:
        return snapshot(server, pool).leases[0].job.task

    with client_here(server.url, pool):
        assert await asyncio.to_thread(plain) == "plain"
        assert await soon() == "named"
        assert await asyncio.to_thread(Model().predict, 3) == (3, "predict")
        assert await Model().predict_soon(4) == (4, "predict_soon")
        assert not snapshot(server, pool).leases


def test_decorators_refuse_what_they_cannot_hold() -> None:
    """A generator's end is seen by nobody, so its lock would be a lie."""

    def numbers() -> Iterator[int]:
        yield 1

    async def soon() -> AsyncIterator[int]:
        yield 1

    for generator in (numbers, soon):
        with pytest.raises(TypeError, match="generator"):
            gpu_lock()(generator)
    with pytest.raises(TypeError, match="parentheses"):
        gpu_lock(numbers)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="method"):
        gpu_lock()(Server)


async def test_one_lock_object_serves_many_tasks_at_once(server: Server, pool: str) -> None:
    """A decorated coroutine runs in many tasks."""
    offer(server, pool, simulated(1))
    lock = gpu_lock(max_wait_time=30)
    inside = 0

    async def work() -> None:
        nonlocal inside
        async with lock:
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1

    with client_here(server.url, pool):
        await asyncio.gather(*(work() for _ in range(10)))


async def test_waiting_zero_and_not_blocking_answer_at_once(server: Server, pool: str) -> None:
    """Busy is an answer, not an error of the machine; the error says who holds it."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        lease = await gpu_lock(task="holder").acquire()

        async def ask() -> None:
            assert await gpu_lock(nested="wait").acquire(blocking=False) is None
            with pytest.raises(GpuLockTimeout, match="GPU 0 held by holder") as busy:
                await gpu_lock(max_wait_time=0, nested="wait").acquire()
            assert isinstance(busy.value, TimeoutError)

        await asyncio.create_task(ask())
        await lease.release()
        await lease.release()
        again = await gpu_lock().acquire(blocking=False)
        assert again is not None and again.token > lease.token
        await again.release()


async def test_a_timed_out_wait_says_who_holds_what_and_leaves_the_queue(server: Server, pool: str) -> None:
    """`GPU 0 not free after …: held by …; place 1 of 1`."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        lease = await gpu_lock(task="ocr").acquire()

        async def ask() -> None:
            with pytest.raises(GpuLockTimeout, match=r"held by ocr \(pid .*place 1 of 1") as late:
                await gpu_lock(max_wait_time="200ms", nested="wait").acquire()
            assert late.value.waited_s >= 0.2 and late.value.place == 1

        await asyncio.create_task(ask())
        assert snapshot(server, pool).queued == 0
        await lease.release()


async def test_losing_the_lease_cancels_the_body_and_says_why(server: Server, pool: str) -> None:
    """A revoked holder must stop at once; its own exception would come out unmasked."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        with pytest.raises(LeaseLost, match="revoked") as lost:
            async with gpu_lock() as lease:
                revoke(server, pool)
                await asyncio.sleep(30)
        assert lost.value.token == lease.token and lease.lost.is_set()
        with pytest.raises(KeyError):
            async with gpu_lock() as lease:
                revoke(server, pool)
                await lease.lost.wait()
                raise KeyError
        assert not snapshot(server, pool).leases


def test_losing_the_lease_of_a_thread_sets_lost_and_raises_at_the_exit(server: Server, pool: str) -> None:
    """A sync body cannot be interrupted; progress and the exit say it."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        with pytest.raises(LeaseLost, match="revoked"):
            with gpu_lock() as lease:
                lease.progress(1)
                revoke(server, pool)
                assert lease.lost.wait_blocking(30)
                with pytest.raises(LeaseLost):
                    lease.progress(2)
        with gpu_lock():
            pass


async def test_impossible_requests_are_refused_at_once(server: Server, pool: str) -> None:
    """What can never be granted is no reason to wait half an hour."""
    offer(server, pool, simulated(2))
    began = time.monotonic()
    with client_here(server.url, pool):
        for lock, text in (
            (gpu_lock(count=9), "has 2 GPUs; ask for fewer"),
            (gpu_lock(memory="80GiB"), "largest card .* has 24 GiB"),
            (gpu_lock(memory="80GiB", exclusive=True), "largest card"),
            (gpu_lock(gpus=[7]), "no gpu_lock:7"),
            (gpu_lock("gpu_lock:ocr", memory="1GiB"), "no memory"),
        ):
            with pytest.raises(ImpossibleRequest, match=text):
                await lock.acquire()
        assert not snapshot(server, pool).queued
    assert time.monotonic() - began < 60


def test_bad_arguments_are_refused_before_anything_is_sent() -> None:
    """The error names the argument and the cure."""
    for arguments, error, text in (
        ({"max_wait_time": "soon"}, ConfigError, "max_wait_time"),
        ({"max_wait_time": -1}, ConfigError, "max_wait_time"),
        ({"lock_key": "a b"}, ImpossibleRequest, "lock key"),
        ({"lock_key": "gpu_lock:0", "gpus": [1]}, ImpossibleRequest, "not both"),
        ({"gpus": ["GPU-1234"]}, ImpossibleRequest, "index"),
        ({"gpus": [0, 0]}, ImpossibleRequest, "twice"),
        ({"gpus": []}, ImpossibleRequest, "no GPU"),
        ({"count": 0}, ImpossibleRequest, "1 to 64"),
        ({"memory": "lots"}, ImpossibleRequest, "memory size"),
        ({"exclusive": False}, ImpossibleRequest, "how much"),
        ({"priority": 1000}, ImpossibleRequest, "-100 to 100"),
        ({"nested": "perhaps"}, ConfigError, "nested"),
        ({"heartbeat": "never"}, ConfigError, "heartbeat"),
        ({"memory": 8}, ImpossibleRequest, "memory=8 means 8 MiB; write '8GiB'"),
        ({"warning": "2h", "hard_timeout": "1h"}, ConfigError, "warning <= .* warning 7200 s, hard_timeout 3600 s"),
        ({"max_wait": "5m"}, TypeError, "no argument 'max_wait'; did you mean 'max_wait_time'"),
        ({"wait": "5m"}, TypeError, "did you mean 'max_wait_time'"),
        ({"bogus": 1}, TypeError, "it has lock_key, timeout, "),
    ):
        with pytest.raises(error, match=text):
            gpu_lock(**arguments)


async def test_no_redis_is_said_with_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: object, pool: str) -> None:
    """The first thing that a new user meets."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("GPULOCKD_SOCKET", f"{tmp_path}/nowhere.sock")
    with pytest.raises(StoreUnavailable, match="gpulockd serve"):
        await gpu_lock().acquire()
    with client_here(f"unix://{tmp_path}/nobody.sock", pool, QUICK):
        with pytest.raises(StoreUnavailable, match="is it running"):
            await gpu_lock().acquire()
    with client_here("http://localhost", pool):
        with pytest.raises(ConfigError, match="scheme"):
            await gpu_lock().acquire()


async def test_an_evicting_server_is_refused(server: Server, pool: str) -> None:
    """A key evicted under memory pressure would be a lock given twice."""
    import redis

    with redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with client_here(server.url, pool), pytest.raises(ConfigError, match="noeviction"):
                await gpu_lock().acquire()
        finally:
            raw.config_set("maxmemory-policy", "noeviction")


async def test_events_are_typed_and_without_a_gap(server: Server, pool: str) -> None:
    """Watchers build on them: what was, what is, and over a lost connection."""
    import redis

    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock(task="first"):
            pass
        seen: list[object] = []

        async def watch() -> None:
            async for event in lock_events(since="10m"):
                seen.append(event)

        watching = asyncio.create_task(watch())
        await until(lambda: any(isinstance(event, LockReleased) for event in seen))
        async with gpu_lock(task="second"):
            pass
        with redis.Redis.from_url(server.url) as raw:
            raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        async with gpu_lock(task="third"):
            pass
        await until(lambda: sum(isinstance(event, LockReleased) for event in seen) == 3)
        watching.cancel()
        acquired = [event for event in seen if isinstance(event, LockAcquired)]
        assert [event.task for event in acquired] == ["first", "second", "third"]
        assert acquired[0].gpus == ("gpu_lock:0",) and acquired[0].waited_ms == 0
        numbers = [event.seq for event in seen]  # type: ignore[attr-defined]
        assert numbers == sorted(set(numbers))


async def test_a_key_without_hardware_needs_no_daemon(server: Server, pool: str) -> None:
    """Any name can be locked in a pool that nobody offered; `gpu_lock()` means gpu_lock:0 there."""
    offer(server, pool, [])
    with client_here(server.url, pool):
        async with gpu_lock("gpu_lock:ocr") as ocr, gpu_lock("gpu_lock:tts") as tts:
            assert (ocr.gpu.key, tts.gpu.key, ocr.gpu.index) == ("gpu_lock:ocr", "gpu_lock:tts", None)
            assert "CUDA_VISIBLE_DEVICES" not in ocr.env
        assert not snapshot(server, pool).gpus


async def test_disabled_locks_nothing_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """GPULOCKD_DISABLE=1 is for laptops; never silent."""
    monkeypatch.setenv("GPULOCKD_DISABLE", "1")
    async with gpu_lock() as lease:
        assert isinstance(lease, Lease) and lease.gpu.index == 0
        await lease.progress(5)
    assert "WITHOUT a lock" in caplog.text


def test_the_exit_of_a_program_ends_its_session(server: Server, pool: str) -> None:
    """The next holder need not wait for a session's end when a program ends in order."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        lease = gpu_lock().acquire_blocking()
        assert lease is not None
        assert snapshot(server, pool).sessions == 1
    until_blocking(lambda: snapshot(server, pool).sessions == 0)
    assert not snapshot(server, pool).leases
