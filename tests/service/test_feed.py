"""The pool's events as the web has them: complete, in order, whatever becomes of the subscription."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import redis

from gpulockd.daemon.news import AWAY, BROKEN, News
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from gpulockd.web.feed import Feed
from tests.servers import Server
from tests.states import until

DEADLINE_S = 5.0


class Happenings:
    """Lets things happen in a pool, as scripts write and tell them."""

    def __init__(self, raw: Any, keys: PoolKeys) -> None:
        self.raw = raw
        self.channel = keys.events_channel

    def write(self, seq: int) -> bytes:
        """An event that nobody is told of."""
        json = b'{"type":"lock_released","seq":%d,"at_ms":%d}' % (seq, seq)
        self.raw.xadd(self.channel, {"e": json}, id=f"{seq}-1")
        return json

    def tell(self, *seqs: int) -> None:
        """Events that are told too."""
        for seq in seqs:
            self.raw.publish(self.channel, self.write(seq))


@pytest.fixture
def happenings(server: Server, pool: str) -> Iterator[Happenings]:
    """A hand on the pool's events."""
    with redis.Redis.from_url(server.url) as raw:
        yield Happenings(raw, PoolKeys(pool))


@asynccontextmanager
async def feeding(url: str, pool: str, kinds: list[str]) -> AsyncIterator[tuple[Feed, News]]:
    """A feed with the news that tell it, whose kinds are noted."""
    keys = PoolKeys(pool)
    store = Store(url, deadline_s=DEADLINE_S)
    feed, news = Feed(store, keys), News(url, keys, DEADLINE_S)
    news.tell_whole(feed.hear)
    news.tell(lambda kind: feed.missed() if kind == BROKEN else None)
    news.tell(kinds.append)
    try:
        async with anyio.create_task_group() as tasks:
            await tasks.start(feed.run)
            await tasks.start(news.run)
            await until(lambda: BROKEN in kinds and feed.last > 0)
            yield feed, news
            tasks.cancel_scope.cancel()
    finally:
        await store.aclose()


async def test_events_wake_who_waits_and_are_told_once_each_in_order(
    server: Server, pool: str, happenings: Happenings
) -> None:
    """Streams, statistics and the recorder go by it: one that is missing is missing everywhere."""
    happenings.write(1)
    told: list[int] = []
    async with feeding(server.url, pool, []) as (feed, _):
        feed.tell(lambda happened: told.append(happened.seq))
        happenings.tell(2, 3)
        with anyio.fail_after(30):
            await feed.changed(1)
            await feed.changed(2)
        happenings.raw.publish(happenings.channel, b"no event at all")
        happenings.tell(4)
        await until(lambda: feed.last == 4)
        assert told == [2, 3, 4]
        assert [happened.seq for happened in await feed.after(1)] == [2, 3, 4]


async def test_what_a_broken_subscription_has_missed_comes_before_what_is_told_next(
    server: Server, pool: str, happenings: Happenings
) -> None:
    """Whoever follows by number would never ask for one that comes behind a later one."""
    happenings.write(1)
    told: list[int] = []
    kinds: list[str] = []
    async with feeding(server.url, pool, kinds) as (feed, _):
        feed.tell(lambda happened: told.append(happened.seq))
        for seq in range(2, 12, 2):
            kinds.clear()
            happenings.raw.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            happenings.write(seq)
            await until(lambda: BROKEN in kinds)
            assert AWAY in kinds, "who sleeps until something is due looks for itself while nothing is told"
            happenings.tell(seq + 1)
            with anyio.fail_after(30):
                await feed.changed(seq)
        assert told == list(range(2, 12))


async def test_news_that_rest_for_a_hand_off_lose_nothing(server: Server, pool: str, happenings: Happenings) -> None:
    """What is told meanwhile waits in the socket; also while they are asked to rest again and again."""
    happenings.write(1)
    told: list[int] = []
    async with feeding(server.url, pool, []) as (feed, news):
        feed.tell(lambda happened: told.append(happened.seq))
        for seq in range(2, 102):
            news.rest()
            happenings.tell(seq)
            await anyio.sleep(0.001)
        await until(lambda: feed.last == 101)
        assert told == list(range(2, 102))
