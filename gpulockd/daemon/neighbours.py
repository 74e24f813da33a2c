"""Others who mean the same real cards: programs of this host in other pools, and other daemons of this host."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

import anyio

from gpulockd.errors import ConfigError
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.store import Store

RETRY_S = 1.0

_claims: dict[str, socket.socket] = {}
"""The cards that this process has claimed, by UUID; the kernel takes the claims back when it ends."""


def claim(uuids: Iterable[str]) -> None:
    """Claim real cards for this daemon alone, whatever store and pool another one has.

    A claim is a name in the abstract socket namespace, which is the network namespace's: daemons in containers with a
    network of their own do not see each other's.

    :raises ConfigError: if another daemon of this host has one of them
    """
    for uuid in uuids:
        if uuid in _claims:
            continue
        claimed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            claimed.bind(f"\0gpulockd-card-{uuid}")
        except OSError as taken:
            claimed.close()
            raise ConfigError(
                f"card {uuid} is offered by another daemon of this host ({taken.strerror}); stop that one first"
            ) from None
        _claims[uuid] = claimed


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
