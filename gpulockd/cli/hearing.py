"""Hears on its session's channel what is asked of a run: that it shall stop, or that its lease has ended.

A message is only a hint: the keepalive says what is true.
"""

from __future__ import annotations

import asyncio

from gpulockd.client.keeper import Keeper
from gpulockd.client.table import Entry
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger.subscription import Subscription

RETRY_S = 0.2
MOST_RETRY_S = 5.0


def hear(keeper: Keeper, entry: Entry) -> None:
    """Wake the keeper when it is rung, until the lease is lost; in a thread of its own."""
    asyncio.run(_hear(keeper, entry))


async def _hear(keeper: Keeper, entry: Entry) -> None:
    session, pause_s = keeper.session, RETRY_S
    while not entry.lost.is_set():
        try:
            channel = session.keys.session_channel(entry.session)
            subscription = await Subscription.open(session.url, (channel,), deadline_s=session.times.rpc_deadline)
            try:
                pause_s = RETRY_S
                while not entry.lost.is_set():
                    _take(await _next(subscription, keeper), keeper, entry)
            finally:
                await subscription.aclose()
        except GpuLockError:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_RETRY_S)


async def _next(subscription: Subscription, keeper: Keeper) -> str:
    """The next message; each keepalive brings one.

    :raises StoreUnavailable: if none came for two keepalives, or the connection broke
    """
    silence_s = 2 * keeper.session.keepalive_s + keeper.session.times.rpc_deadline
    try:
        async with asyncio.timeout(silence_s):
            return (await subscription.next()).decode("utf-8", "replace")
    except TimeoutError:
        raise StoreUnavailable(f"no echo for {silence_s:g} s") from None


def _take(message: str, keeper: Keeper, entry: Entry) -> None:
    word, _, rest = message.partition(" ")
    if rest.partition(" ")[0] != entry.id:
        return
    if word in ("stop", "lost"):
        entry.rung_to_stop |= word == "stop"
        keeper.wake()
