"""Other pools with programs of this host: they mean the same cards, so real cards are not offered beside them."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store

RETRY_S = 1.0


async def outwait(store: Store, pool: str, boot_id: str, say: Callable[[str], None]) -> None:
    """Return when no program of this boot is alive in a pool other than `pool`.

    :param say: told why this waits, once for each set of pools
    :raises StoreUnavailable: if the store does not answer
    """
    said: list[str] = []
    while True:
        busy = [name for name in await store.pools() if name != pool and await _lives_in(store, name, boot_id)]
        if not busy:
            return
        if busy != said:
            said = busy
            say(f"programs of this host still use pool {', '.join(busy)}; the GPUs are offered when they have ended")
        await anyio.sleep(RETRY_S)


async def _lives_in(store: Store, pool: str, boot_id: str) -> bool:
    answer = await store.ask(verbs.snapshot(PoolKeys(pool), length=1, boot_id=boot_id))
    return isinstance(answer, a.Pictured) and answer.of_boot > 0
