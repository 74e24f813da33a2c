"""A web service for the tests: each handler notes in a folder what becomes of it, and goes on when `go` is there."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpulockd import Lease
from gpulockd.contrib.asgi import GpuMiddleware, gpu, lifespan, status_app

FOLDER = Path(os.environ.get("TEST_FOLDER", "."))

app = FastAPI(lifespan=lifespan)
app.mount("/gpu", status_app())

OneGpu = Annotated[Lease, Depends(gpu(wait="60s"))]
NowOrNever = Annotated[Lease, Depends(gpu())]


def note(what: str) -> None:
    """Let the test see it."""
    (FOLDER / what).touch()


def noted(what: str) -> bool:
    """Whether the test, or a handler, has said it."""
    return (FOLDER / what).exists()


async def until_go(name: str) -> None:
    """Wait for the test, and note how it ended."""
    note(f"{name}.in")
    try:
        while not noted("go"):  # noqa: ASYNC110 - the test is another process
            await anyio.sleep(0.01)
    except BaseException:
        note(f"{name}.cancelled")
        raise
    note(f"{name}.out")


@app.post("/hold/{name}")
async def hold(name: str, body: dict[str, str], lease: OneGpu) -> dict[str, object]:
    """Hold until told."""
    await until_go(name)
    return {"gpu": lease.gpu.index, "task": lease.task, "body": body}


@app.post("/raw/{name}")
async def raw(name: str, request: Request, lease: OneGpu) -> dict[str, object]:
    """A body that the handler reads itself."""
    return {"length": len(await request.body())}


@app.get("/now")
async def now(lease: NowOrNever) -> dict[str, object]:
    """A free GPU or none."""
    return {"gpu": lease.gpu.index}


@app.get("/sync/{name}")
def in_a_thread(name: str, lease: OneGpu) -> dict[str, object]:
    """A handler that nobody can cancel, but that looks."""
    anyio.from_thread.run(lease.progress, 50.0, "half")
    note(f"{name}.in")
    while not lease.stopping.is_set() and not noted("go"):
        time.sleep(0.01)
    note(f"{name}.out")
    return {"gpu": lease.gpu.index}


@app.get("/stream/{name}")
async def stream(name: str, lease: OneGpu) -> StreamingResponse:
    """An answer in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first\n"
        await until_go(name)
        yield b"last\n"

    return StreamingResponse(pieces())


@app.get("/later/{name}")
async def later(name: str, lease: OneGpu, tasks: BackgroundTasks) -> dict[str, object]:
    """Work after the answer."""
    tasks.add_task(until_go, name)
    return {"gpu": lease.gpu.index}


@app.get("/fails/{how}")
async def fails(how: str, lease: OneGpu) -> None:
    """The handler's own errors stay what they are."""
    if how == "teapot":
        raise HTTPException(418, "short and stout")
    raise ValueError("a fault of the handler")


async def plain_hold(request: Request) -> Response:
    """As `hold`, without FastAPI."""
    body = await request.body()
    await until_go(request.path_params["name"])
    return JSONResponse({"gpu": request.state.gpu.gpu.index, "task": request.state.gpu.task, "length": len(body)})


async def plain_later(request: Request) -> Response:
    """As `later`, without FastAPI."""
    return JSONResponse({}, background=BackgroundTask(until_go, request.path_params["name"]))


async def plain_stream(request: Request) -> Response:
    """As `stream`, without FastAPI."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first\n"
        await until_go(request.path_params["name"])

    return StreamingResponse(pieces())


held = [Middleware(GpuMiddleware, wait="60s")]
at_once = [Middleware(GpuMiddleware)]
app.mount(
    "/plain",
    Starlette(
        routes=[
            Route("/hold/{name}", plain_hold, methods=["POST"], middleware=held),
            Route("/now/{name}", plain_hold, methods=["POST"], middleware=at_once),
            Route("/later/{name}", plain_later, middleware=held),
            Route("/stream/{name}", plain_stream, middleware=held),
        ]
    ),
)
