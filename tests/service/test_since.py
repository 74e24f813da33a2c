"""From which number on the events of the last while are: found by halving, as a reader of the whole stream would."""

from __future__ import annotations

import random

import redis

from gpulockd.client.watching import seq_before
from gpulockd.clock import wall_ms
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from tests.servers import Server


async def test_the_past_begins_where_it_began(server: Server, pool: str) -> None:
    """Numbers have holes, and several events may have one time: none is told twice and none is left out."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    keys, now_ms = PoolKeys(pool), wall_ms()
    store = Store(server.url, deadline_s=30.0, name="test")
    try:
        assert await seq_before(store, keys, "1h") == 0
        numbers = sorted(chosen.sample(range(1, 400), 120))
        ages_s = sorted((chosen.randrange(0, 4000, 40) for _ in numbers), reverse=True)
        with redis.Redis.from_url(server.url) as raw:
            for seq, age_s in zip(numbers, ages_s, strict=True):
                told = f'{{"type":"from_the_future","seq":{seq},"at_ms":{now_ms - age_s * 1000}}}'
                raw.xadd(keys.events_channel, {"e": told}, id=f"{seq}-1")
        for since_s in (0, 10, 30, 500, 1990, 3610, 3990, 10_000):
            wanted = [seq for seq, age_s in zip(numbers, ages_s, strict=True) if age_s <= since_s]
            late_s = (wall_ms() - now_ms) / 1000
            found = await seq_before(store, keys, since_s + late_s + 5)
            assert [seq for seq in numbers if seq > found] == wanted, since_s
        assert await seq_before(store, keys, None) == numbers[-1]
    finally:
        await store.aclose()
