"""Locks inside locks: join, grant at once, or say so; never wait for oneself."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
import warnings

import pytest

from gpulockd import GpuLockError, GpuLockTimeout, Lease, WouldDeadlock, current_lease, gpu_lock
from gpulockd.client import ownholds
from tests.pools import client_here, offer, simulated, snapshot
from tests.servers import Server


async def test_the_same_task_joins_what_its_lease_covers(server: Server, pool: str) -> None:
    """A decorated function calls another decorated one: on one GPU it would wait for itself for ever."""
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        async with gpu_lock(gpus=[0, 1]) as outer:
            async with gpu_lock() as inner, gpu_lock(gpus=[1]) as one, gpu_lock(memory="2GiB") as share:
                assert inner is outer and one is outer and share is outer
            assert outer.living
            assert len(snapshot(server, pool).leases) == 1
        assert not snapshot(server, pool).leases


async def test_asking_for_more_while_holding_is_granted_at_once_or_refused(server: Server, pool: str) -> None:
    """Two tasks that hold one GPU and ask for the other's would wait for each other."""
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        async with gpu_lock(gpus=[0]):
            async with gpu_lock(gpus=[1]) as more:
                assert more.gpu.index == 1
            other = await asyncio.create_task(_hold(gpu_lock(gpus=[1], nested="wait")))
            with pytest.raises(WouldDeadlock, match=r"gpu_lock\(gpus=\[0, 1\]\)"):
                async with gpu_lock(gpus=[1]):
                    pass
            await other.release()
        assert not snapshot(server, pool).leases


async def _hold(lock: gpu_lock) -> Lease:
    return await lock.acquire()


def test_a_thread_that_asks_for_more_is_told_the_one_call(server: Server, pool: str) -> None:
    """It is the thread itself that holds, though the portal asks for it."""
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        with gpu_lock("gpu_lock:0"):
            with pytest.raises(WouldDeadlock, match="this task holds gpu_lock:0 and asks for"):
                with gpu_lock(count=2):
                    pass


def test_the_call_that_is_advised_can_be_granted(server: Server, pool: str) -> None:
    """One GPU and two more are three; the pool has two, of which the outer call takes both and the inner joins them."""
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        with gpu_lock():
            with pytest.raises(WouldDeadlock) as told:
                with gpu_lock(count=2):
                    pass
        assert str(told.value).endswith("ask for all of it in the outer call, gpu_lock(count=2)")
        with gpu_lock(count=2), gpu_lock(count=2) as both:
            assert len(both.gpus) == 2


async def test_a_second_acquire_is_told_to_use_the_first(server: Server, pool: str) -> None:
    """One GPU more is no cure for who needs none, and a pool of one has no second."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        lease = await gpu_lock().acquire()
        with pytest.raises(WouldDeadlock, match="go on with the one that it has"):
            await gpu_lock().acquire()
        await lease.release()


async def test_children_of_a_holder_are_told_instead_of_waiting_for_it(server: Server, pool: str) -> None:
    """`gather` and `wait_for` inside a block make tasks that would wait for their own parent."""
    offer(server, pool, simulated(1))

    async def child() -> None:
        async with gpu_lock():
            pass

    with client_here(server.url, pool):
        async with gpu_lock():
            with pytest.raises(WouldDeadlock, match="nested='join'"):
                await asyncio.gather(child(), child())
            with pytest.raises(WouldDeadlock, match=r"asyncio\.timeout"):
                await asyncio.create_task(child())
        await asyncio.gather(child(), child())
        assert not snapshot(server, pool).leases


async def test_children_join_or_wait_when_they_say_so(server: Server, pool: str) -> None:
    """`nested=` makes the two other meanings available, by name."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock() as outer:

            async def join() -> bool:
                async with gpu_lock(nested="join") as lease:
                    return lease is outer

            async def wait() -> None:
                async with gpu_lock(nested="wait", max_wait_time=0.2):
                    pass

            assert await asyncio.create_task(join())
            with pytest.raises(GpuLockTimeout):
                await asyncio.create_task(wait())


async def test_a_child_waits_for_another_gpu_than_its_parents(server: Server, pool: str) -> None:
    """Only a lease that stands in the way forbids waiting."""
    offer(server, pool, simulated(2))
    with client_here(server.url, pool):
        other = await asyncio.create_task(_hold(gpu_lock(gpus=[1])))

        async def child() -> int | None:
            async with gpu_lock(gpus=[1], max_wait_time=20) as lease:
                return lease.gpu.index

        async with gpu_lock(gpus=[0]):
            waiting = asyncio.create_task(child())
            await asyncio.sleep(0.05)
            await other.release()
            assert await waiting == 1


def test_threads_are_tickets_of_their_own(server: Server, pool: str) -> None:
    """Several threads with `with` are kept apart like processes."""
    offer(server, pool, simulated(1))
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            with gpu_lock(max_wait_time=30) as lease:
                inside.append(lease.token)
                most.append(len(inside))
                inside.remove(lease.token)

    with client_here(server.url, pool):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(most) == 20
    assert max(most) == 1


def test_a_thread_that_waits_for_its_own_process_is_named_and_one_with_the_context_is_told(
    server: Server, pool: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads do not inherit the block that started them, so a block that joins its thread waits for itself."""
    offer(server, pool, simulated(1))
    monkeypatch.setattr(ownholds, "SAY_AFTER_S", 0.3)
    told: list[Exception] = []

    def ask() -> None:
        try:
            with gpu_lock(max_wait_time=1):
                pass
        except GpuLockError as error:
            told.append(error)

    with client_here(server.url, pool), caplog.at_level(logging.WARNING, "gpulockd"):
        with gpu_lock():
            for target in (ask, ask, functools.partial(contextvars.copy_context().run, ask)):
                thread = threading.Thread(target=target)
                thread.start()
                thread.join()
    assert [type(error) for error in told] == [GpuLockTimeout, GpuLockTimeout, WouldDeadlock]
    assert "this process" in str(told[0])
    assert caplog.text.count("while this process itself holds GPU 0") == 1


@pytest.mark.filterwarnings("ignore:.*blocks that loop:RuntimeWarning")
def test_a_sync_block_in_an_event_loop_is_granted_at_once_or_refused(server: Server, pool: str) -> None:
    """It may not block the loop that must release what it waits for."""
    offer(server, pool, simulated(1))

    async def main() -> None:
        with gpu_lock() as lease:
            assert lease.gpu.index == 0
            with gpu_lock() as joined:
                assert joined.token == lease.token
        async with gpu_lock() as outer:
            with gpu_lock() as inner:
                assert inner.token == outer.token
        other = await asyncio.create_task(_hold(gpu_lock()))
        with pytest.raises(GpuLockError, match="use 'async with gpu_lock"):
            with gpu_lock():
                pass
        await other.release()

    with client_here(server.url, pool):
        asyncio.run(main())


def test_a_sync_block_in_an_event_loop_is_warned_of_where_it_is_written(server: Server, pool: str) -> None:
    """On a free machine all tests would pass without `async`, and the first busy day would not."""
    offer(server, pool, simulated(1))

    @gpu_lock()
    def decorated() -> None:
        pass

    async def main() -> None:
        for _ in range(3):
            with gpu_lock():
                pass
            decorated()
        lease = gpu_lock().acquire_blocking(blocking=False)  # says itself that it does not wait
        assert lease is not None
        lease.release()

    with client_here(server.url, pool), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        asyncio.run(main())
        decorated()  # no loop runs here
    assert [(one.category, one.filename) for one in told] == [(RuntimeWarning, __file__)] * 2
    assert all("use 'async with gpu_lock()'" in str(one.message) for one in told)


def test_a_process_uses_many_loops_one_after_another(server: Server, pool: str) -> None:
    """Celery and pytest call asyncio.run many times; the session and its keepalive belong to none of them."""
    offer(server, pool, simulated(1))

    async def once() -> int:
        async with gpu_lock() as lease:
            assert current_lease() is lease
            return lease.token

    with client_here(server.url, pool):
        tokens = [asyncio.run(once()) for _ in range(4)]
        with gpu_lock() as lease:
            tokens.append(lease.token)
        assert tokens == sorted(set(tokens))
        assert snapshot(server, pool).sessions == 1
