"""A cancelled wait leaves nothing; a lost reply takes no second place. Both generated, for every point there is."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest

from gpulockd import Lease, gpu_lock
from gpulockd.client import process
from tests.pools import client_here, offer, simulated, snapshot
from tests.proxies import proxied
from tests.servers import Server
from tests.states import until, until_blocking

MOST_POINTS = 400


class Interrupted:
    """Awaits a coroutine and cancels the task at its n-th suspension; `suspensions` says how many there were."""

    def __init__(self, work: Awaitable[Any], at: int) -> None:
        self.work = work
        self.at = at
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.work.__await__()
        sent: Any = None
        while True:
            try:
                waiting_for = steps.send(sent)
            except StopIteration as done:
                return done.value
            self.suspensions += 1
            if self.suspensions == self.at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            while True:
                try:
                    sent = yield waiting_for
                    break
                except BaseException as thrown:  # noqa: BLE001 - passed on, as the event loop does
                    try:
                        waiting_for = steps.throw(thrown)
                    except StopIteration as done:
                        return done.value
                    self.suspensions += 1


async def _block() -> None:
    async with gpu_lock(max_wait_time=20):
        await asyncio.sleep(0)


async def _by_hand() -> None:
    lease = await gpu_lock(max_wait_time=20).acquire()
    try:
        await asyncio.sleep(0)
    finally:
        await lease.release()


async def _behind_another() -> None:
    """Waits in the queue first, so that the doorbell and the confirm are cancelled too."""
    other = await _held_elsewhere()
    releasing = asyncio.ensure_future(_release_soon(other))
    try:
        async with gpu_lock(max_wait_time=20):
            await asyncio.sleep(0)
    finally:
        with anyio.CancelScope(shield=True):
            await releasing


async def _held_elsewhere() -> Lease:
    """A lease of another task with a context of its own: the same task would join it."""
    loop = asyncio.get_running_loop()
    return await loop.create_task(gpu_lock(max_wait_time=20).acquire(), context=contextvars.Context())


async def _release_soon(lease: Lease) -> None:
    await asyncio.sleep(0.01)
    await lease.release()


@pytest.mark.parametrize("work", [_block, _by_hand, _behind_another])
async def test_cancelling_at_any_await_leaves_nothing(
    server: Server, pool: str, work: Callable[[], Awaitable[None]]
) -> None:
    """Invariants 3 and 12: whatever await is interrupted, the gpu is free for the next one."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        await work()
        for at in range(1, MOST_POINTS):
            interrupted = Interrupted(work(), at)
            task = asyncio.ensure_future(interrupted)
            cancelled = False
            try:
                await task
            except asyncio.CancelledError:
                cancelled = True
            async with asyncio.timeout(20):
                async with gpu_lock(max_wait_time=20):
                    held = snapshot(server, pool)
                    assert len(held.leases) == 1, (at, held.leases)
                    assert held.queued == 0, (at, held.queue)
            if interrupted.suspensions < at:
                break
            assert cancelled or interrupted.suspensions == at, at
        else:
            pytest.fail(f"more than {MOST_POINTS} suspensions")
        assert at > 3
        await until(lambda: not snapshot(server, pool).leases)
        process.say_goodbye()


@pytest.mark.parametrize("work", [_block, _behind_another])
async def test_each_reply_lost_once_takes_one_place_and_one_token(
    server: Server, pool: str, work: Callable[[], Awaitable[None]]
) -> None:
    """Invariant 3: a retry of anything is the same thing."""
    offer(server, pool, simulated(1))
    for lose in range(1, MOST_POINTS):
        before = snapshot(server, pool).counters
        async with proxied(server, lose=lose) as proxy:
            with client_here(proxy.url, pool):
                async with asyncio.timeout(30):
                    await work()
                lost = proxy.lost
                proxy.lose = 0
                await until(lambda: not snapshot(server, pool).leases)
        after = snapshot(server, pool).counters
        count = {name: after.get(name, 0) - before.get(name, 0) for name in after}
        expected = 2 if work is _behind_another else 1
        assert count["lock_acquired"] == expected, (lose, count)
        assert count["lock_released"] == expected, (lose, count)
        if not lost:
            break
    else:
        pytest.fail(f"more than {MOST_POINTS} replies")
    assert lose > 3


async def test_an_outer_scope_cancels_a_wait_within_its_time(server: Server, pool: str) -> None:
    """anyio's cancellation is level-triggered: it must not keep the clean-up from being sent."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        other = await _held_elsewhere()
        with anyio.move_on_after(0.1) as scope:
            async with gpu_lock():
                pytest.fail("two in the body")
        assert scope.cancelled_caught
        await until(lambda: snapshot(server, pool).queued == 0)
        await other.release()


async def test_a_body_error_comes_out_as_it_is_and_releases(server: Server, pool: str) -> None:
    """Invariant 12, and nobody wants an ExceptionGroup from a lock."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        with pytest.raises(ZeroDivisionError):
            async with gpu_lock():
                _ = 1 // 0
        assert not snapshot(server, pool).leases


@pytest.mark.filterwarnings("ignore:.*was dropped:ResourceWarning")
def test_a_closed_loop_leaves_no_ticket(server: Server, pool: str) -> None:
    """`asyncio.run` cancels what is left; the wait that was under way must not stay in the queue."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):

        async def leave_a_waiter() -> str:
            lease = await _held_elsewhere()
            waiter = asyncio.ensure_future(gpu_lock().acquire())
            await until(lambda: snapshot(server, pool).queued == 1)
            del waiter
            return lease.id

        held = asyncio.run(leave_a_waiter())
        asyncio.run(until(lambda: snapshot(server, pool).queued == 0))
        assert [lease.id for lease in snapshot(server, pool).leases] == [held]
    until_blocking(lambda: not snapshot(server, pool).leases)
