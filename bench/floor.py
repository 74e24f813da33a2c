"""`python -m bench.floor`: the least that an answer over HTTP costs here: one route of Starlette on uvicorn, which says
the same words each time, and a stream that tells all its readers the same words a few times a second.

Says `port N`, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

HEALTH, EVENTS = "/api/v1/monitoring/gpu-lock/health", "/api/v1/events"
WORDS = b'{"overall_status":"healthy",' + b" " * 270 + b'"lock_holder":null}'
NEWS = (b"id: 1\nevent: lock_acquired\ndata: " + b" " * 260 + b"\n\n") * 10
"""As many bytes as a reader of our daemon gets at a time while `bench web` makes some forty events a second."""

NEWS_EVERY_S = 0.25


async def health(_request: Request) -> Response:
    """Say the same."""
    return Response(WORDS, media_type="application/json")


async def events(_request: Request) -> Response:
    """Tell the same, again and again."""

    async def news() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(NEWS_EVERY_S)
            yield NEWS

    return StreamingResponse(news(), media_type="text/event-stream")


async def main() -> None:
    """Serve until nobody listens."""
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    door.bind(("127.0.0.1", 0))
    app = Starlette(routes=[Route(HEALTH, health), Route(EVENTS, events)])
    config = uvicorn.Config(
        app, http="httptools", ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False,
        server_header=False, date_header=False, timeout_graceful_shutdown=0,
    )  # fmt: skip
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([door]))
    print("port", door.getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await serving


if __name__ == "__main__":
    asyncio.run(main())
