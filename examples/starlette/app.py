"""The same without FastAPI: a middleware on the routes that need a GPU. `uvicorn app:app`."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from gpulockd.contrib.asgi import GpuMiddleware, lifespan, status_app


async def infer(request: Request) -> JSONResponse:
    """The lease is in the request's state."""
    return JSONResponse({"device": request.state.gpu.gpu.device})


app = Starlette(
    routes=[
        Route("/infer", infer, methods=["POST"], middleware=[Middleware(GpuMiddleware, memory="4GiB", wait="2s")]),
        Mount("/gpu", status_app()),
    ],
    lifespan=lifespan,
)
