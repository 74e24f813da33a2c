"""GPUs for web services: a FastAPI dependency, an ASGI middleware, a status app and a lifespan.

    @app.post("/infer")
    async def infer(prompt: Prompt, lease: Annotated[Lease, Depends(gpu(memory="4GiB", wait="2s"))]): ...

A request holds its GPU until its answer, streamed or not, and its background tasks are through. Its body is read before
the GPU is asked for. A client that hangs up gives its place in the queue back, and the GPU too. Busy is 503 with a
`Retry-After` of the expected wait.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpulockd.contrib.extras import extra

with extra("fastapi"):
    from gpulockd.contrib.asgi.living import lifespan
    from gpulockd.contrib.asgi.middleware import GpuMiddleware
    from gpulockd.contrib.asgi.status import status_app

if TYPE_CHECKING:
    from gpulockd.contrib.asgi.dependency import gpu

__all__ = ["GpuMiddleware", "gpu", "lifespan", "status_app"]


def __getattr__(name: str) -> Any:
    """`gpu` is loaded when it is first used, for it needs FastAPI; the rest needs Starlette only."""
    if name != "gpu":
        raise AttributeError(f"module 'gpulockd.contrib.asgi' has no attribute {name!r}")
    with extra("fastapi"):
        value = import_module("gpulockd.contrib.asgi.dependency").gpu
    globals()[name] = value
    return value
