"""What an opponent found: errors at bad moments, blocks left elsewhere, interrupted threads, wrong keys."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import redis

from gpulockd import ImpossibleRequest, Lease, LeaseLost, gpu_lock
from gpulockd.client import process
from tests.pools import CALM, QUICK, client_here, offer, simulated, snapshot
from tests.proxies import proxied
from tests.servers import Server
from tests.service.test_client_forms import revoke
from tests.states import until, until_blocking


@contextlib.contextmanager
def refusing(server: Server, *commands: str) -> Iterator[None]:
    """Let the server refuse some commands for a moment, as a wrong ACL does."""
    with redis.Redis.from_url(server.url) as raw:
        raw.execute_command("ACL", "SETUSER", "default", *(f"-{command}" for command in commands))
        try:
            yield
        finally:
            raw.execute_command("ACL", "SETUSER", "default", "+@all")


async def test_the_keepalive_outlives_an_unexpected_error(server: Server, pool: str) -> None:
    """Invariant 7: a thread that died of one wrong answer would let the session end under its holder."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock() as lease:
            with refusing(server, "fcall"):
                await asyncio.sleep(3 * CALM.keepalive)
            believed = lease._session.believed_until()
            await until(lambda: lease._session.believed_until() > believed)
            assert not lease.lost.is_set()
            await lease.progress(1)
            assert len(snapshot(server, pool).leases) == 1


async def test_an_end_that_met_an_error_is_repeated(server: Server, pool: str) -> None:
    """Invariants 3 and 12: a refused release would keep the gpu for as long as the process lives."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        lease = await gpu_lock().acquire()
        with refusing(server, "fcall"):
            await lease.release()
        await until(lambda: not snapshot(server, pool).leases)


async def test_replies_that_trickle_in_do_not_stretch_belief(server: Server, pool: str) -> None:
    """A reply that never ends must not keep the holder from looking at the clock."""
    offer(server, pool, simulated(1), session=QUICK)
    async with proxied(server) as proxy:
        with client_here(proxy.url, pool, QUICK):
            with pytest.raises(LeaseLost):
                async with gpu_lock():
                    proxy.trickle_s = 0.3
                    proxy.cut()
                    await asyncio.sleep(30)
            proxy.trickle_s = 0.0


async def test_a_lease_lasts_until_the_last_body_that_joined_it(server: Server, pool: str) -> None:
    """Invariant 1: a child that shares its parent's lease may still compute when the parent's block ends."""
    offer(server, pool, simulated(1))
    go_on = asyncio.Event()

    async def child() -> None:
        async with gpu_lock(nested="join") as lease:
            await go_on.wait()
            assert lease.living

    with client_here(server.url, pool):
        async with gpu_lock():
            joined = asyncio.create_task(child())
            await asyncio.sleep(0.05)
        assert len(snapshot(server, pool).leases) == 1
        go_on.set()
        await joined
        assert not snapshot(server, pool).leases


async def test_a_loss_cancels_every_body_that_joined(server: Server, pool: str) -> None:
    """Who shares a lease shares its end."""
    offer(server, pool, simulated(1))

    async def child() -> None:
        async with gpu_lock(nested="join"):
            await asyncio.sleep(30)

    with client_here(server.url, pool):
        with pytest.raises(LeaseLost):
            async with gpu_lock():
                joined = asyncio.create_task(child())
                await asyncio.sleep(0.05)
                revoke(server, pool)
                await asyncio.sleep(30)
        with pytest.raises(LeaseLost):
            await joined


async def test_a_block_left_in_another_task_is_released(server: Server, pool: str) -> None:
    """The loop finalises an abandoned generator in a task of its own."""
    offer(server, pool, simulated(1))

    async def numbers() -> AsyncIterator[int]:
        async with gpu_lock():
            yield 1

    async def use() -> AsyncIterator[int]:
        generator = numbers()
        await anext(generator)
        return generator

    with client_here(server.url, pool):
        generator = await asyncio.create_task(use())
        with pytest.raises(RuntimeError, match="in the task that entered it"):
            await asyncio.create_task(_leave_quietly(generator))
        await until(lambda: not snapshot(server, pool).leases)


async def _leave_quietly(generator: AsyncIterator[int]) -> None:
    with contextlib.suppress(StopAsyncIteration):
        await anext(generator)


def test_a_block_may_be_left_by_another_thread(server: Server, pool: str) -> None:
    """FastAPI runs the two halves of a sync dependency in two threads."""
    offer(server, pool, simulated(1))

    @contextlib.contextmanager
    def dependency() -> Iterator[int]:
        with gpu_lock() as lease:
            yield lease.token

    with client_here(server.url, pool), ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        entered = dependency()
        one.submit(entered.__enter__).result()
        assert len(snapshot(server, pool).leases) == 1
        two.submit(entered.__exit__, None, None, None).result()
        assert not snapshot(server, pool).leases


@pytest.mark.filterwarnings("ignore:(?s).*SoftLimitError:pytest.PytestUnraisableExceptionWarning")  # in a destructor
def test_a_signal_handler_that_raises_leaves_no_lock(server: Server, pool: str) -> None:
    """Invariant 12: so arrive Ctrl-C and Celery's soft time limit, at any bytecode."""
    offer(server, pool, simulated(1))
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    class SoftLimitError(Exception):
        pass

    def limit(*_: object) -> None:
        raise SoftLimitError

    before = signal.signal(signal.SIGALRM, limit)
    try:
        with client_here(server.url, pool):
            with gpu_lock():
                pass
            for _ in range(40):
                # CPython's own locks may complain when a signal handler raises inside them.
                with contextlib.suppress(SoftLimitError, RuntimeError):
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 2e-3))
                    with gpu_lock(max_wait_time=20):
                        signal.setitimer(signal.ITIMER_REAL, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
                until_blocking(lambda: not snapshot(server, pool).leases)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_lease_may_be_released_in_another_loop(server: Server, pool: str) -> None:
    """Celery and tests run several loops one after the other."""
    offer(server, pool, simulated(1))

    async def acquire() -> Lease:
        return await gpu_lock().acquire()

    with client_here(server.url, pool):
        lease = asyncio.run(acquire())
        asyncio.run(lease.release())
        assert not snapshot(server, pool).leases


def test_what_only_looks_like_a_gpu_is_no_lock_key() -> None:
    """It would lock a name, and the program would run beside others on the card."""
    for key, cure in (
        ("0", "gpu_lock:0"),
        ("gpu:1", "gpu_lock:1"),
        ("cuda:2", "gpu_lock:2"),
        ("any", "no key"),
        ("GPU-1f", "gpus="),
    ):
        with pytest.raises(ImpossibleRequest, match=cure):
            gpu_lock(key)


async def test_a_lock_on_no_card_is_said(server: Server, pool: str, caplog: pytest.LogCaptureFixture) -> None:
    """A mistyped pool would otherwise be a lock on nothing."""
    offer(server, f"{pool}-other", simulated(1))
    with redis.Redis.from_url(server.url) as raw:
        young = raw.info("server")["uptime_in_seconds"] < QUICK.ttl + 1
    with client_here(server.url, pool, QUICK):
        async with gpu_lock(max_wait_time=30):
            pass
    assert "on a name and on no card" in caplog.text, young
    for name in (f"{pool}-other",):
        with redis.Redis.from_url(server.url) as raw:
            raw.unlink(*raw.keys(f"gpulockd:{{{name}}}:*"))


async def test_belief_is_counted_in_the_terms_that_the_daemon_published(server: Server, pool: str) -> None:
    """A client with larger defaults of its own would lose every lease of a quick pool."""
    brisk = msgspec.structs.replace(QUICK, ttl=12.0, rpc_deadline=2.0)
    offer(server, pool, simulated(1), session=brisk, defaults={"session": msgspec.to_builtins(brisk)})
    # By its own margin a lease would be believed for 50 ms, a tenth of what a keepalive needs.
    own = msgspec.structs.replace(brisk, ttl=30.0, margin=brisk.ttl - brisk.step_s - 0.05)
    with client_here(server.url, pool, own):
        async with gpu_lock() as lease:
            await asyncio.sleep(2.0)
            assert not lease.lost.is_set()
    process.say_goodbye()


def test_threads_leave_in_any_order(server: Server, pool: str) -> None:
    """One lock object, many threads: each leaves its own block."""
    offer(server, pool, simulated(4))
    lock = gpu_lock(max_wait_time=30)
    meet = threading.Barrier(4)

    def work(n: int) -> None:
        with lock:
            meet.wait(30)

    with client_here(server.url, pool):
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not snapshot(server, pool).leases
