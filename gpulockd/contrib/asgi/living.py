"""`lifespan`: the service meets its pool before its first request, and says goodbye after its last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gpulockd.client.process import belongings, line_for
from gpulockd.errors import StoreUnavailable

log = logging.getLogger("gpulockd")


@asynccontextmanager
async def lifespan(app: Any = None, *, pool: str | None = None) -> AsyncIterator[None]:
    """For `FastAPI(lifespan=lifespan)`, or inside your own: `async with lifespan(app): yield`.

    At the start it connects, so that the first request need not. A pool that is away is logged and no obstacle:
    requests are answered 503 until it is back. At the end it closes what this event loop has opened.

    :param pool: the pool's name, if it is not the local one
    :raises ConfigError: if the configuration cannot be used, so that the service does not start
    """
    try:
        line = await line_for(pool)
    except StoreUnavailable as away:
        log.warning("gpulockd: %s; until then requests are answered 503", away)
    else:
        log.info("gpulockd: GPUs come from pool %s", line.session.pool)
    try:
        yield
    finally:
        here = asyncio.get_running_loop()
        for line in [line for (_, loop), line in belongings().lines.items() if loop is here]:
            await line.aclose()
