"""How the commands of backups ask the store, and how its errors read on a terminal."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gpulockd.cli.talk import NEGATIVE, NO_DAEMON, NOT_PERMITTED, USAGE, CommandError
from gpulockd.client.finding import find_store
from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger.store import Store

T = TypeVar("T")

DEADLINE_S = 30.0
"""How long one answer may take (in seconds): a history of a thousand revisions is written at once."""


def with_store(pool: str | None, work: Callable[[Store, str], Awaitable[T]]) -> T:
    """Do something with the store and the pool that this host uses.

    :param pool: what the command line names
    :raises CommandError: if the store is away, closed to this user, or refuses
    """

    async def do() -> T:
        found = find_store(pool)
        store = Store(found.url, deadline_s=DEADLINE_S, name="gpulockd-backup")
        try:
            return await work(store, found.pool or "default")
        finally:
            await store.aclose()

    try:
        return asyncio.run(do())
    except StoreUnavailable as away:
        raise CommandError(away.message, "the store must run: 'gpulockd serve'", NO_DAEMON) from None
    except ConfigError as wrong:
        closed = "closed to" in wrong.message or "refused" in wrong.message
        raise CommandError(wrong.message, "", NOT_PERMITTED if closed else USAGE) from None
    except GpuLockError as wrong:
        raise CommandError(wrong.message, "'gpulockd doctor' looks at the store", NEGATIVE) from None


def author() -> str:
    """Who runs this command."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
