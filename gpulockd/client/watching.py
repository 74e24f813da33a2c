"""`lock_events`: what happens in a pool, live, without a gap over a lost connection."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
import msgspec

from gpulockd import events
from gpulockd.client.finding import find_store
from gpulockd.client.process import DEFAULT_POOL
from gpulockd.client.whoami import boot_id
from gpulockd.client.wishes import Duration, session_block
from gpulockd.clock import wall_ms
from gpulockd.errors import StoreUnavailable
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store
from gpulockd.ledger.subscription import Subscription
from gpulockd.units import parse_duration_s

log = logging.getLogger("gpulockd")

_when = msgspec.json.Decoder(events.When).decode

RETRY_S = 0.2
MOST_RETRY_S = 5.0


async def lock_events(
    since: Duration | None = None, *, after: int | None = None, pool: str | None = None
) -> AsyncIterator[events.Event]:
    """Yield the events of a pool as they happen; events that this version does not know are passed over.

    :param since: also those of the last `since` (seconds or "10m"), as far as the pool's stream reaches back
    :param after: also those after this `seq`
    :param pool: the pool's name, if it is not the local one
    :raises StoreUnavailable: if no store is known; one that goes away later is waited for
    """
    found = find_store(pool)
    store = Store(found.url, deadline_s=session_block().rpc_deadline, name="gpulockd-events")
    try:
        name = found.pool or await store.pool_of_host(boot_id()) or DEFAULT_POOL
        keys = PoolKeys(name)
        last = after if after is not None else await seq_before(store, keys, since)
        pause_s = RETRY_S
        while True:
            try:
                async for event in _follow(store, keys, last):
                    last = event.seq
                    pause_s = RETRY_S
                    yield event
            except StoreUnavailable as away:
                log.warning("gpulockd: events of pool %s are interrupted: %s", name, away)
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)
    finally:
        await store.aclose()


async def _follow(store: Store, keys: PoolKeys, last: int) -> AsyncIterator[events.Event]:
    """Subscribe first, then read what was written meanwhile, then hear: nothing falls between."""
    subscription = await Subscription.open(
        store.url, (keys.events_channel,), deadline_s=store.deadline_s, sharded=False
    )
    try:
        while True:
            rows = await store.read_events(keys.events_channel, f"{last}-1")
            if not rows:
                break
            for row in rows:
                last, event = _when(row).seq, events.decode(row)
                if event is not None:
                    yield event
        while True:
            event = events.decode(await subscription.next())
            if event is not None and event.seq > last:
                last = event.seq
                yield event
    finally:
        await subscription.aclose()


async def seq_before(store: Store, keys: PoolKeys, since: Duration | None) -> int:
    """The `seq` after which the events of the last `since` begin."""
    newest = await store.latest_events(keys.events_channel, 1)
    after = _when(newest[0]).seq if newest else 0
    if since is None or not newest:
        return after
    begin_ms = wall_ms() - round(parse_duration_s(since, "since") * 1000)
    before = _when((await store.read_events(keys.events_channel, "0", 1) or newest)[0]).seq - 1
    # Times grow with numbers, so halving finds it: what is up to `before` was earlier, what is beyond `after` was not.
    while before < after:
        middle = (before + after + 1) // 2
        found = await store.read_events(keys.events_channel, f"{middle - 1}-1", 1)
        if found and _when(found[0]).at_ms < begin_ms:
            before = max(middle, _when(found[0]).seq)
        else:
            after = middle - 1
    return before
