"""Measures how busy the server and the pool's gpus are, four times a minute, for the statistics.

Several daemons may do so at once: a measurement is of the time since the last one, whoever made it.
"""

from __future__ import annotations

import anyio
import anyio.abc
import structlog

from gpulockd.errors import StoreUnavailable
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.load import load
from gpulockd.ledger.recorded import Ask

EVERY_S = 15.0
"""How often it measures (in seconds)."""

MOST = 4
"""After so many times that, nobody knows what was in between, and measuring begins anew."""

_log = structlog.get_logger(__name__)


async def run(
    ask: Ask,
    keys: PoolKeys,
    *,
    every_s: float = EVERY_S,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run until cancelled.

    :param ask: sends a script
    :param every_s: how often it measures (in seconds)
    """
    task_status.started()
    every_ms = round(1000 * every_s)
    call = load(keys, least_ms=every_ms // 2, most_ms=MOST * every_ms)
    while True:
        try:
            await ask(call)
        except StoreUnavailable as away:
            _log.debug("storeload.store_away", message=away.message)
        await anyio.sleep(every_s)
