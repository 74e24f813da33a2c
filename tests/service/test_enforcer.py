"""Levels, silence and recovery against a real ledger and real holders, with times of a second."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import redis

from gpulockd import LeaseLost, StoreUnavailable, gpu_lock
from gpulockd.client.whoami import this_process
from gpulockd.daemon.enforcer import Enforcer
from gpulockd.daemon.judging import Reading
from gpulockd.daemon.levels import Rules
from gpulockd.daemon.monitor import Monitor
from gpulockd.daemon.news import News
from gpulockd.daemon.obeying import Asks
from gpulockd.daemon.usage import Sample
from gpulockd.events import Event, HeartbeatMissed, LockRevoked, StopRequested, TimeoutWarned, decode
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.limits_verbs import Reached, reach
from gpulockd.ledger.store import BlockingStore, Store
from gpulockd.ledger.verbs import Call
from gpulockd.model import Snapshot
from gpulockd.settings import CleanupBlock, HeartbeatBlock, MonitorBlock, QueueBlock, SettleBlock, TimeoutLevels
from tests.pools import CALM, QUICK, client_here, environment, offer, simulated, snapshot
from tests.servers import Server
from tests.states import until

NEVER = TimeoutLevels(warning=3600, soft_timeout=3600, hard_timeout=7200)
TOLD = (TimeoutWarned, StopRequested, HeartbeatMissed, LockRevoked)

HOLDER = """
import sys, time
from gpulockd import gpu_lock
with gpu_lock(task="holder", **{arguments}) as lease:
    print(lease.id, flush=True)
    while True:
        time.sleep(60)
"""


def rules(**monitor: Any) -> Rules:
    """Rules with quick retries, whose levels do not act unless a job names its own."""
    base = {"timeout_levels": NEVER, "cleanup": CleanupBlock(retry_delay=0.2, max_retry=2)}
    return Rules(monitor=msgspec.structs.replace(MonitorBlock(), **(base | monitor)))


@asynccontextmanager
async def asking(server: Server, pool: str, deadline_s: float = 30.0) -> AsyncIterator[tuple[Store, str]]:
    """A command connection as a daemon has one, and the id of its session."""
    keys, id = PoolKeys(pool), secrets.token_hex(8)
    store = Store(server.url, deadline_s=deadline_s)
    terms = verbs.Terms.of(CALM, QueueBlock(), SettleBlock())
    await store.ask(verbs.open(keys, session=id, process=this_process(), terms=terms, known_pool=True))
    try:
        yield store, id
    finally:
        await store.ask(verbs.end(keys, session="", id=id, token=None, reason="released", what="session"))
        await store.aclose()


@asynccontextmanager
async def enforcing(
    server: Server,
    pool: str,
    by: Rules,
    *,
    runs: Callable[[], Mapping[str, Reading]] = dict,
    through: Callable[[Asks], Asks] = lambda ask: ask,
    press: list[str] | None = None,
) -> AsyncIterator[Enforcer]:
    """Run an enforcer for the time of the block.

    :param through: what stands between it and the store
    :param press: takes the leases whose runs it wants to be signalled again
    """

    async def pressed(lease: str, gpus: tuple[str, ...]) -> None:
        if press is not None:
            press.append(lease)

    async with asking(server, pool) as (store, id):
        ask = through(store.ask)
        enforcer = Enforcer(
            PoolKeys(pool),
            ask,
            session=lambda: id,
            rules=lambda: by,
            runs=runs,
            press=pressed,
        )
        news = News(server.url, PoolKeys(pool), 30.0)
        news.tell(enforcer.hear)
        async with anyio.create_task_group() as tasks:
            await tasks.start(news.run)
            await tasks.start(enforcer.run)
            yield enforcer
            tasks.cancel_scope.cancel()


def told(server: Server, pool: str) -> list[Event]:
    """What was said of limits and heartbeats, in order."""
    with redis.Redis.from_url(server.url) as raw:
        rows = [decode(fields[b"e"]) for _, fields in raw.xrange(PoolKeys(pool).events_channel)]
    return [event for event in rows if isinstance(event, TOLD)]


def kinds(server: Server, pool: str) -> list[tuple[str, str | None]]:
    """What was said, in short."""
    return [(event.kind, event.reason) for event in told(server, pool)]


def mark(server: Server, pool: str, id: str, token: int, level: Reached, **how: Any) -> Any:
    """Say that a lease has reached a level."""
    store = BlockingStore(server.url, deadline_s=5)
    answer = store.ask(reach(PoolKeys(pool), id=id, token=token, level=level, **({"after_ms": 0} | how)))
    store.close()
    return answer


@contextmanager
def holder(server: Server, pool: str, **arguments: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds GPU 0 until it is ended, and the id of its lease."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.replace("{arguments}", repr(arguments))],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment(server.url, pool, QUICK),
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


async def over(server: Server, pool: str) -> None:
    """Wait until nobody holds or lives any more, so that nothing is left for the next test."""
    await until(lambda: not snapshot(server, pool).sessions)


# The three levels.


async def test_warning_soft_and_hard_act_on_their_own_time_and_once(server: Server, pool: str) -> None:
    """The promise of design 7: said, asked, taken; the full check is a minute away and not needed."""
    offer(server, pool, simulated(1))
    by = rules(monitor_interval=60.0)
    with client_here(server.url, pool):
        async with enforcing(server, pool, by) as enforcer:
            with pytest.raises(LeaseLost):
                async with gpu_lock(task_id="w-1", warning=0.4, soft_timeout=2.0, hard_timeout=4.0) as lease:
                    await asyncio.wait_for(lease.stopping.wait(), 30)
                    assert not lease.lost.is_set()
                    assert snapshot(server, pool).leases[0].level == "soft"
                    await asyncio.sleep(30)
            expected = [("timeout_warned", "warning"), ("stop_requested", "soft"), ("lock_revoked", "hard_timeout")]
            assert kinds(server, pool) == expected
            assert all(event.task_id == "w-1" and event.gpus == ("gpu_lock:0",) for event in told(server, pool))
            counts = enforcer.obeying.counts
            assert (counts.warning, counts.soft, counts.hard) == (1, 1, 1)
            await until(lambda: counts.recovered == 1)
            assert not enforcer.obeying.recoveries


async def test_a_holder_that_leaves_when_asked_keeps_its_lease_until_then(server: Server, pool: str) -> None:
    """Soft means: save your work and go."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with enforcing(server, pool, rules()) as enforcer:
            async with gpu_lock(soft_timeout=0.3, hard_timeout=3600) as lease:
                await asyncio.wait_for(lease.stopping.wait(), 30)
                await lease.progress(100, "saved")
            assert kinds(server, pool) == [("stop_requested", "soft")]
            assert not enforcer.obeying.recoveries


async def test_a_daemon_that_was_away_acts_on_the_highest_level_only(server: Server, pool: str) -> None:
    """Its ages are the ledger's, so it knows what it has missed."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock(warning=0.1, soft_timeout=0.2, hard_timeout=3600) as lease:
            await until(lambda: snapshot(server, pool).leases[0].held_ms >= 200)
            async with enforcing(server, pool, rules()):
                await asyncio.wait_for(lease.stopping.wait(), 30)
            assert kinds(server, pool) == [("stop_requested", "soft")]


async def test_a_level_acts_once_for_two_daemons_and_over_restarts(server: Server, pool: str) -> None:
    """The mark stands on the lease and is compared in the script that sets it."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock(warning=0.2, soft_timeout=3600, hard_timeout=7200):
            async with enforcing(server, pool, rules()), enforcing(server, pool, rules()) as second:
                await until(lambda: second.obeying.levels or kinds(server, pool))
            async with enforcing(server, pool, rules()) as third:
                await until(lambda: third.obeying.levels)
                await third.look(full=True)
            assert kinds(server, pool) == [("timeout_warned", "warning")]


async def test_without_auto_recovery_nobody_is_asked_and_nothing_is_taken(server: Server, pool: str) -> None:
    """Detect and alert only."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with enforcing(server, pool, rules(auto_recovery=False)) as enforcer:
            async with gpu_lock(warning=0.1, soft_timeout=0.4, hard_timeout=0.9) as lease:
                await until(lambda: enforcer.obeying.counts.hard)
                await enforcer.look(full=True)
                assert not lease.stopping.is_set()
                assert not lease.lost.is_set()
            reasons = [("timeout_warned", level) for level in ("warning", "soft", "hard")]
            assert kinds(server, pool) == reasons[-len(kinds(server, pool)) :]


async def test_disabled_does_nothing(server: Server, pool: str) -> None:
    """`enabled: false`."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with enforcing(server, pool, rules(enabled=False)) as enforcer:
            async with gpu_lock(warning=0.05, soft_timeout=0.05, hard_timeout=0.05) as lease:
                await until(lambda: snapshot(server, pool).leases[0].held_ms > 500)
                await enforcer.look(full=True)
                assert not lease.lost.is_set()
            assert not told(server, pool)


async def test_a_lost_ring_is_repeated_at_the_full_check(server: Server, pool: str) -> None:
    """A message is only a hint: who was not there when it rang is asked again."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock(warning=0.1, soft_timeout=0.2, hard_timeout=7200) as lease:
            # What a ring that nobody heard leaves behind: the mark alone.
            with redis.Redis.from_url(server.url) as raw:
                raw.hset(f"gpulockd:{{{pool}}}:ticket:{lease.id}", "level", "soft")
            await until(lambda: snapshot(server, pool).leases[0].held_ms > 200)
            async with enforcing(server, pool, rules()) as enforcer:
                await until(lambda: enforcer.obeying.levels)
                assert not lease.stopping.is_set()
                await enforcer.look(full=True)
                await asyncio.wait_for(lease.stopping.wait(), 30)
            assert not told(server, pool)


# The verb.


async def test_reach_marks_once_upwards_and_only_what_is_there(server: Server, pool: str) -> None:
    """A stale token changes nothing, a lower level neither, and no age is taken on trust."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock() as lease:
            id, token = lease.id, lease.token
            answers = [
                mark(server, pool, id, token, "warning", after_ms=3_600_000),
                mark(server, pool, id, token, "soft"),
                mark(server, pool, id, token, "soft"),
                mark(server, pool, id, token, "warning"),
                mark(server, pool, id, token, "hard"),
            ]
            assert [(one.how, one.was) for one in answers] == [
                ("early", ""),
                ("reached", ""),
                ("noted", "soft"),
                ("noted", "soft"),
                ("reached", "soft"),
            ]
            assert isinstance(mark(server, pool, id, token - 1, "hard"), a.Stale)
            assert isinstance(mark(server, pool, "nobody", token, "hard"), a.Gone)
            assert snapshot(server, pool).leases[0].level == "hard"
        assert kinds(server, pool) == [("timeout_warned", "soft"), ("timeout_warned", "hard")]


async def test_silence_counts_from_the_last_word_and_is_told_once_each_time(server: Server, pool: str) -> None:
    """A word between picture and script makes it no silence."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with gpu_lock(heartbeat="manual") as lease:
            await until(lambda: snapshot(server, pool).leases[0].held_ms > 1500)
            how = {"after_ms": 1500, "manual": True}
            assert mark(server, pool, lease.id, lease.token, "silent", **how).how == "reached"
            assert mark(server, pool, lease.id, lease.token, "silent", **how).how == "noted"
            await lease.progress(1)
            assert mark(server, pool, lease.id, lease.token, "silent", **how).how == "early"
            record = snapshot(server, pool).leases[0]
            assert record.missed_age_ms is not None and record.heartbeat_age_ms is not None
            assert record.missed_age_ms >= record.heartbeat_age_ms
            await until(lambda: (snapshot(server, pool).leases[0].heartbeat_age_ms or 0) > 1500)
            assert mark(server, pool, lease.id, lease.token, "silent", **how).how == "reached"
        assert kinds(server, pool) == 2 * [("heartbeat_missed", "silent")]


# Silence.


async def test_a_manual_task_lives_by_its_own_words(server: Server, pool: str) -> None:
    """`heartbeat="manual"`: keepalives do not count, silence alone is a stall."""
    offer(server, pool, simulated(1))
    by = rules(heartbeat=HeartbeatBlock(timeout=2.5))
    with client_here(server.url, pool):
        async with enforcing(server, pool, by) as enforcer:
            with pytest.raises(LeaseLost):
                async with gpu_lock(heartbeat="manual") as lease:
                    while lease.held_s < 4.0:
                        await lease.progress(1)
                        await asyncio.sleep(0.1)
                    assert not told(server, pool)
                    await asyncio.sleep(60)
            assert kinds(server, pool) == [("heartbeat_missed", "silent"), ("lock_revoked", "silent")]
            assert enforcer.obeying.counts.silent == 1


async def test_a_body_that_blocks_its_loop_is_heard_by_its_keepalives(server: Server, pool: str) -> None:
    """An honest body that computes without a word is never touched: the thread beats for it."""
    offer(server, pool, simulated(1), session=QUICK)
    by = rules(heartbeat=HeartbeatBlock(timeout=3.0))
    with holder(server, pool) as (_, id):
        async with enforcing(server, pool, by, runs=lambda: {id: Reading(idle_ms=10**9)}):
            await until(lambda: snapshot(server, pool).leases[0].held_ms > 4000)
            assert not told(server, pool)
    await over(server, pool)


@pytest.mark.parametrize("idle", [True, False, None])
async def test_a_stopped_process_is_told_of_and_ended_only_if_it_was_seen_to_do_nothing(
    server: Server, pool: str, idle: bool | None
) -> None:
    """The keepalives end with SIGSTOP; what its run used meanwhile decides, and unknown is not idle."""
    offer(server, pool, simulated(1), session=QUICK)
    by = rules(heartbeat=HeartbeatBlock(timeout=1.2))
    with holder(server, pool) as (process, id):
        reading = Reading(idle_ms=None if idle is None else 10**9 if idle else 0)
        async with enforcing(server, pool, by, runs=lambda: {id: reading}):
            process.send_signal(signal.SIGSTOP)
            missed = ("heartbeat_missed", "silent")
            await until(lambda: missed in kinds(server, pool))
            if idle:
                await until(lambda: ("lock_revoked", "silent") in kinds(server, pool))
            await until(lambda: not snapshot(server, pool).leases)  # its session ends too, by the pool's ttl
            assert kinds(server, pool) == [missed, *([("lock_revoked", "silent")] if idle else [])]
    await over(server, pool)


async def test_what_a_stopped_run_uses_is_seen_by_the_full_check(server: Server, pool: str) -> None:
    """Monitor and enforcer together: CPU time of the real process, a card that does nothing, then the end."""
    offer(server, pool, simulated(1), session=msgspec.structs.replace(QUICK, ttl=30.0))
    by = rules(heartbeat=HeartbeatBlock(timeout=3.0), monitor_interval=0.2)
    with holder(server, pool) as (process, id):

        async def sampled(_: Snapshot) -> dict[str, Sample]:
            words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            return {id: Sample(cpu_ticks=int(words[11]) + int(words[12]), gpu_busy=False, gone=False)}

        async with asking(server, pool) as (store, _):
            monitor = Monitor(PoolKeys(pool), store.ask, rules=lambda: by, sample=sampled)
            async with enforcing(server, pool, by, runs=monitor.readings) as enforcer:
                monitor.on_check = partial(enforcer.look, full=True)
                async with anyio.create_task_group() as tasks:
                    await tasks.start(monitor.run)
                    await until(lambda: monitor.checks.healthy > 3)
                    assert not told(server, pool)
                    process.send_signal(signal.SIGSTOP)
                    await until(lambda: not snapshot(server, pool).leases)
                    expected = [("heartbeat_missed", "silent"), ("lock_revoked", "silent")]
                    assert kinds(server, pool) == expected
                    tasks.cancel_scope.cancel()


# Recovery.


class Failing:
    """Lets the ends of leases fail so often, as a store that answers by an error."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, ask: Asks) -> Asks:
        async def asked(call: Call[Any]) -> Any:
            if call.script.name == "end" and self.left > 0:
                self.left -= 1
                raise StoreUnavailable("the connection broke")
            return await ask(call)

        return asked


async def test_a_recovery_that_failed_is_tried_again(server: Server, pool: str) -> None:
    """`cleanup.max_retry` and `retry_delay`."""
    offer(server, pool, simulated(1))
    with client_here(server.url, pool):
        async with enforcing(server, pool, rules(), through=Failing(2)) as enforcer:
            with pytest.raises(LeaseLost):
                async with gpu_lock(hard_timeout=0.3):
                    await asyncio.sleep(60)
            assert enforcer.obeying.counts.hard == 1
            await until(lambda: enforcer.obeying.counts.recovered == 1)
            assert enforcer.obeying.counts.failed == 0


async def test_a_recovery_that_fails_for_good_quarantines_the_gpu_and_tells_once(server: Server, pool: str) -> None:
    """Nobody else is let on a gpu whose holder could not be ended, and tries go on."""
    offer(server, pool, simulated(1))
    failing = Failing(6)
    with client_here(server.url, pool):
        async with enforcing(server, pool, rules(), through=failing) as enforcer:
            with pytest.raises(LeaseLost):
                async with gpu_lock(hard_timeout=0.3):
                    await until(lambda: enforcer.obeying.counts.failed == 1)
                    assert snapshot(server, pool).gpus[0].state == "quarantined"
                    await asyncio.sleep(60)
            assert failing.left == 0
            assert enforcer.obeying.counts.failed == 1


async def test_a_run_that_stays_on_its_gpu_is_signalled_again_and_then_given_up(server: Server, pool: str) -> None:
    """The ledger quarantines what did not settle; the enforcer asks the guard as often as configured."""
    offer(server, pool, simulated(1))
    press: list[str] = []
    with client_here(server.url, pool):
        async with enforcing(server, pool, rules(), press=press) as enforcer, asking(server, pool) as (store, id):
            keys = PoolKeys(pool)
            with pytest.raises(LeaseLost):
                async with gpu_lock(hard_timeout=0.5) as lease:
                    stays = verbs.report(keys, session=id, gpu="gpu_lock:0", state="quarantined", reason="stays")
                    await store.ask(stays)
                    await asyncio.sleep(60)
            await until(lambda: enforcer.obeying.counts.failed == 1)
            assert press == 2 * [lease.id]
            left = verbs.report(keys, session=id, gpu="gpu_lock:0", state="settled", reason="clean")
            await store.ask(left)
            await until(lambda: enforcer.obeying.counts.recovered == 1)


async def test_a_store_that_is_away_at_the_limit_is_waited_for(server: Server, pool: str) -> None:
    """The ages go on in the ledger; the enforcer is back when the store is."""
    offer(server, pool, simulated(1), session=QUICK)
    with holder(server, pool, hard_timeout=1.0):
        async with enforcing(server, pool, rules()):
            server.pause()
            await asyncio.sleep(1.5)
            server.resume()
            await until(lambda: ("lock_revoked", "hard_timeout") in kinds(server, pool))
    await over(server, pool)


async def test_a_dead_holder_that_nobody_told_of_is_found(server: Server, pool: str) -> None:
    """Zombie tasks are cleaned: their session ends with all that it has."""
    offer(server, pool, simulated(1), session=msgspec.structs.replace(QUICK, ttl=60.0))
    dead: dict[str, Reading] = {}
    with holder(server, pool) as (process, id):
        async with enforcing(server, pool, rules(), runs=lambda: dead) as enforcer:
            process.kill()
            dead[id] = Reading(gone=True)
            await enforcer.look(full=True)
            assert not snapshot(server, pool).leases
            assert enforcer.obeying.counts.buried == 1


# The full check.


async def test_checks_are_counted_as_healthy_and_unhealthy(server: Server, pool: str) -> None:
    """`monitor/status` shows these."""
    offer(server, pool, simulated(2))
    keys, looked = PoolKeys(pool), 0

    async def look() -> None:
        nonlocal looked
        looked += 1

    async with asking(server, pool, deadline_s=5.0) as (store, id):
        monitor = Monitor(keys, store.ask, rules=rules)
        monitor.on_check = look
        await monitor.check()
        assert (monitor.checks.total, monitor.checks.healthy, looked) == (1, 1, 1)
        bad = verbs.report(keys, session=id, gpu="gpu_lock:1", state="quarantined", reason="test")
        await store.ask(bad)
        found = (await monitor.check()).findings
        assert [(finding.kind, finding.what) for finding in found] == [("quarantined", "gpu_lock:1")]
        server.pause()
        assert [finding.kind for finding in (await monitor.check()).findings] == ["unreachable"]
        assert monitor.checks.last_error
        server.resume()
        await store.ask(verbs.report(keys, session=id, gpu="gpu_lock:1", state="ready", reason="test"))
        await monitor.check()
        assert (monitor.checks.total, monitor.checks.healthy, monitor.checks.unhealthy) == (4, 2, 2)
        assert monitor.checks.last_error is None
