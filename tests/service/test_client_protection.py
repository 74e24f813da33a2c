"""Three layers when a body ends: the release, the emergency release, and a clean-up that endangers neither."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from gpulockd import Lease, LeaseLost, gpu_lock
from gpulockd.client import cleaning
from tests.pools import QUICK, client_here, environment, offer, simulated, snapshot
from tests.proxies import proxied
from tests.servers import Server
from tests.service.test_client_forms import revoke
from tests.service.test_client_hardening import refusing
from tests.states import until, until_blocking


@pytest.fixture(autouse=True)
def _swept() -> Iterator[None]:
    """The threads of one test are none of the next one's."""
    yield
    until_blocking(lambda: not cleaning._running)


class Broom:
    """A clean-up that notes how many leases stood when it began, and in which thread it ran."""

    def __init__(self, server: Server, pool: str) -> None:
        self.leases: list[int] = []
        self.threads: list[threading.Thread] = []
        self._look: Callable[[], int] = lambda: len(snapshot(server, pool).leases)

    def __call__(self) -> None:
        self.threads.append(threading.current_thread())
        self.leases.append(self._look())


async def test_a_clean_up_begins_after_the_release_in_a_thread_of_its_own(server: Server, pool: str) -> None:
    """YiVideo's synchronised the card first, so each hand-off waited for it."""
    offer(server, pool, simulated(1))
    broom = Broom(server, pool)
    with client_here(server.url, pool):
        async with gpu_lock(cleanup=broom):
            assert not broom.leases
        await until(lambda: broom.leases)
    assert broom.leases == [0]
    assert broom.threads[0] is not threading.current_thread() and broom.threads[0].daemon


def test_every_form_cleans_up_once(server: Server, pool: str) -> None:
    """A form that forgets it would fill the card with what nobody uses."""
    offer(server, pool, simulated(1))
    broom = Broom(server, pool)

    @gpu_lock(cleanup=broom)
    def plain() -> None: ...

    @gpu_lock(cleanup=broom)
    async def soon() -> None: ...

    def block() -> None:
        with gpu_lock(cleanup=broom):
            pass

    async def by_hand() -> None:
        lease = await gpu_lock(cleanup=broom).acquire()
        await lease.release()
        await lease.release()

    def by_hand_in_a_thread() -> None:
        lease = gpu_lock(cleanup=broom).acquire_blocking()
        assert lease is not None
        lease.release()
        lease.release()

    async def released_early() -> None:
        async with gpu_lock(cleanup=broom) as lease:
            await lease.release()

    with client_here(server.url, pool):
        for form in (plain, block, by_hand_in_a_thread, soon, by_hand, released_early):
            running = form()
            if running is not None:
                asyncio.run(running)
            until_blocking(lambda: broom.leases and not cleaning._running)
            assert broom.leases.pop() == 0
            assert not broom.leases


async def test_a_body_that_fails_is_cancelled_or_loses_its_lease_is_cleaned_up_too(server: Server, pool: str) -> None:
    """Out-of-memory errors and time limits are what leaves the most behind."""
    offer(server, pool, simulated(1))
    broom = Broom(server, pool)

    async def work(lose: bool = False, fail: bool = False) -> None:
        async with gpu_lock(cleanup=broom, max_wait_time=20):
            if lose:
                revoke(server, pool)
            if fail:
                raise MemoryError
            await asyncio.sleep(60)

    with client_here(server.url, pool):
        with pytest.raises(MemoryError):
            await work(fail=True)
        await until(lambda: broom.leases == [0])
        with pytest.raises(LeaseLost):
            await work(lose=True)
        await until(lambda: broom.leases == [0, 0])
        cancelled = asyncio.create_task(work())
        await until(lambda: snapshot(server, pool).leases)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await until(lambda: broom.leases == [0, 0, 0])


async def test_a_body_that_never_began_is_not_cleaned_up(server: Server, pool: str) -> None:
    """Who waited in vain has put nothing on the card, and may share its process with one that has."""
    offer(server, pool, simulated(1))
    broom = Broom(server, pool)
    with client_here(server.url, pool):
        async with gpu_lock():
            waiting = asyncio.create_task(_hold(gpu_lock(cleanup=broom, nested="wait")))
            await until(lambda: snapshot(server, pool).queue)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await until(lambda: not snapshot(server, pool).queue)
        assert not cleaning._running
    assert not broom.leases


async def _hold(lock: gpu_lock) -> Lease:
    return await lock.acquire()


async def test_joined_bodies_are_cleaned_up_with_the_lease(server: Server, pool: str) -> None:
    """The outer body still uses the card; a clean-up given at each of many joins runs once, the last given first."""
    offer(server, pool, simulated(1))
    said: list[str] = []
    outer, inner = functools.partial(said.append, "outer"), functools.partial(said.append, "inner")
    with client_here(server.url, pool):
        async with gpu_lock(cleanup=outer):
            for _ in range(3):
                async with gpu_lock(cleanup=inner):
                    pass
            with gpu_lock(cleanup=inner):
                pass
            assert not cleaning._running and not said
        await until(lambda: len(said) == 2)
        await until(lambda: not cleaning._running)
    assert said == ["inner", "outer"]


@pytest.mark.filterwarnings("ignore:.*blocks that loop:RuntimeWarning")
async def test_an_exit_does_not_wait_for_the_clean_up(
    server: Server, pool: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that hangs must keep neither the next holder nor the program; it is told of."""
    offer(server, pool, simulated(1))
    go_on = threading.Event()
    monkeypatch.setattr(cleaning, "LONG_S", 0.1)
    with client_here(server.url, pool):
        try:
            async with gpu_lock(cleanup=lambda: go_on.wait(60)):
                pass
            with gpu_lock(cleanup=lambda: go_on.wait(60)):
                pass
            async with gpu_lock(max_wait_time=10):
                await until(lambda: caplog.text.count("has taken more than") == 2)
        finally:
            go_on.set()
        await until(lambda: not cleaning._running)


async def test_what_a_clean_up_raises_is_logged_and_the_others_still_run(
    server: Server, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A body that went well must not fail because of its broom."""
    offer(server, pool, simulated(1))
    said: list[str] = []

    def fails() -> None:
        raise RuntimeError("CUDA error: device-side assert")

    async def soon() -> None: ...

    def hidden() -> object:
        return soon()

    with client_here(server.url, pool):
        async with gpu_lock(cleanup=lambda: said.append("swept")):
            async with gpu_lock(cleanup=fails), gpu_lock(cleanup=hidden):
                pass
        await until(lambda: said)
    assert "device-side assert" in caplog.text
    assert "which nobody awaits" in caplog.text


def test_a_clean_up_that_cannot_run_in_a_thread_is_refused() -> None:
    """A coroutine that nobody awaits would clean nothing and say nothing."""

    async def soon() -> None: ...

    class Soon:
        async def __call__(self) -> None: ...

    for wrong in (soon, Soon(), functools.partial(soon)):
        with pytest.raises(TypeError, match="plain 'def'"):
            gpu_lock(cleanup=wrong)
    with pytest.raises(TypeError, match="without arguments"):
        gpu_lock(cleanup="torch.cuda.empty_cache")  # type: ignore[arg-type]


def test_a_program_that_ends_lets_its_clean_up_finish(server: Server, pool: str) -> None:
    """A thread that dies inside the driver can abort the whole process on its way out."""
    offer(server, pool, simulated(1))
    program = (
        "import os, time\n"
        "from gpulockd import gpu_lock\n"
        "with gpu_lock(cleanup=lambda: (time.sleep(0.3), os.write(1, b'swept'))):\n    pass\n"
    )
    env = dict(os.environ) | environment(server.url, pool)
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "swept", "")


async def test_a_release_that_got_no_answer_is_repeated_on_a_fresh_connection(
    server: Server, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Layer three: the gpu is free as soon as Redis can be reached at all, and the log says so once."""
    offer(server, pool, simulated(1))
    async with proxied(server) as proxy:
        with client_here(proxy.url, pool):
            lease = await gpu_lock().acquire()
            proxy.refusing = True
            proxy.cut()
            await lease.release()
            before = proxy.replies
            await asyncio.sleep(0.3)
            assert proxy.replies == before and len(snapshot(server, pool).leases) == 1
            proxy.refusing = False
            await until(lambda: not snapshot(server, pool).leases)
            await until(lambda: not lease._session.table.all())
    assert caplog.text.count("emergency release") == 1


def test_a_thread_s_release_is_repeated_too(server: Server, pool: str, caplog: pytest.LogCaptureFixture) -> None:
    """Sync programs have the same three layers; their exit returns after the first one."""
    offer(server, pool, simulated(1))
    broom = Broom(server, pool)
    with client_here(server.url, pool), redis.Redis.from_url(server.url) as raw:
        raw.acl_log_reset()
        with contextlib.ExitStack() as refused:
            with gpu_lock(cleanup=broom) as lease:
                refused.enter_context(refusing(server, "fcall"))
            assert len(lease._session.table.all()) == 1
            # The server keeps the name of the connection that it refused last.
            until_blocking(lambda: "gpulockd-emergency" in str(raw.acl_log()))
        until_blocking(lambda: not snapshot(server, pool).leases)
        until_blocking(lambda: len(broom.threads) == 1)
    assert caplog.text.count("emergency release") == 1


async def test_an_emergency_release_leaves_a_later_holder_alone(server: Server, pool: str) -> None:
    """YiVideo's deleted whatever lock stood by then (invariant 8)."""
    offer(server, pool, simulated(1))
    async with proxied(server) as proxy:
        with client_here(proxy.url, pool):
            lease = await gpu_lock().acquire()
            proxy.refusing = True
            proxy.cut()
            await lease.release()
            revoke(server, pool)
            later = _taken_by_another(server, pool)
            proxy.refusing = False
            await until(lambda: not lease._session.table.all())
            (standing,) = snapshot(server, pool).leases
            assert (standing.id, standing.token > lease.token) == (later, True)
            revoke(server, pool)


def _taken_by_another(server: Server, pool: str) -> str:
    """Let another process hold the gpu and leave it so; its lease's id."""
    program = (
        "import os, sys\nfrom gpulockd import gpu_lock\nlease = gpu_lock().acquire_blocking()\n"
        "os.write(1, lease.id.encode())\nos._exit(0)\n"
    )
    env = dict(os.environ) | environment(server.url, pool)
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout


async def test_an_end_that_outlasts_belief_is_left_to_the_ledger(
    server: Server, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is asked for ever: the session's end ends the lease, and a session that goes on gives it back."""
    offer(server, pool, simulated(1), session=QUICK)
    async with proxied(server) as proxy:
        with client_here(proxy.url, pool, QUICK):
            lease = await gpu_lock().acquire()
            session = lease._session
            proxy.refusing = True
            proxy.cut()
            await lease.release()
            await until(lambda: not session.table.all())
            assert "is left to the guard and the ledger" in caplog.text
            proxy.refusing = False
            await until(lambda: not snapshot(server, pool).leases)


async def test_a_session_that_goes_on_gives_back_what_was_left(server: Server, pool: str) -> None:
    """Belief ends before the session does: then nobody else would end the lease while this process lives."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        lease = await gpu_lock().acquire()
        lease._session.table.remove(lease._entry)
        await until(lambda: not snapshot(server, pool).leases)
        assert lease._session.is_open
