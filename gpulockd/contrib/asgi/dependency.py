"""`gpu(...)`: a GPU as a dependency of a FastAPI route.

Its law: two dependencies in one. The outer one holds the lease for the whole request, streamed answer and background
tasks too. The inner one ends with the handler; while it lasts, a client that hangs up cancels the handler. Later the
answer's own sending notices that, and a background task goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Unpack

import anyio
from fastapi import Depends, HTTPException, Request

from gpulockd.client.lease import Lease
from gpulockd.client.wishes import Duration
from gpulockd.contrib.asgi.options import Options
from gpulockd.contrib.asgi.watching import Watch
from gpulockd.contrib.asgi.wish import Wish
from gpulockd.errors import GpuLockError, GpuLockTimeout, LeaseLost, StoreUnavailable

CLIENT_GONE = 499
"""What the log says of a request whose client has hung up."""


def gpu(*, wait: Duration = 0, **options: Unpack[Options]) -> Callable[..., Awaitable[Lease]]:
    """Return a dependency that is a `Lease`: `Depends(gpu(memory="4GiB", wait="2s"))`.

    Make it once, at the module's top or in the signature. A request whose GPU does not come within `wait` is answered
    503 with `Retry-After`; one that loses its GPU before it is answered is, too.

    :param wait: how long a request may wait (seconds or "2s"); 0: it takes a free GPU or none, and never queues
    :param options: as for `gpu_lock`
    :raises ImpossibleRequest: if they name nothing that could be granted
    """
    wish = Wish(wait, **options)

    async def held(request: Request) -> AsyncIterator[Lease]:
        # A request that is still coming in needs no GPU yet.
        with suppress(RuntimeError):  # FastAPI has read it as a form
            await request.body()
        with anyio.CancelScope() as waiting:
            watch = Watch(request.receive, waiting.cancel)
            try:
                async with AsyncExitStack() as stack:
                    try:
                        async with watch:
                            lease = await stack.enter_async_context(wish.lock(request.scope))
                    except (GpuLockTimeout, StoreUnavailable) as busy:
                        raise await _unavailable(wish, busy, request) from busy
                    yield lease
            except LeaseLost as lost:
                raise await _unavailable(wish, lost, request) from lost
        if watch.gone:
            raise HTTPException(CLIENT_GONE)

    async def handled(request: Request, lease: Lease = Depends(held)) -> AsyncIterator[Lease]:  # noqa: B008
        with anyio.CancelScope() as handling:

            def hang_up() -> None:
                lease.stopping.set()  # a handler in a thread cannot be cancelled, but it may look
                handling.cancel()

            async with Watch(request.receive, hang_up) as watch:
                yield lease
        if watch.gone:
            raise HTTPException(CLIENT_GONE)

    async def gpu_lease(lease: Lease = Depends(handled, scope="function")) -> Lease:  # noqa: B008
        return lease

    return gpu_lease


async def _unavailable(wish: Wish, trouble: GpuLockError, request: Request) -> HTTPException:
    refusal = await wish.refusal(trouble, request.scope)
    return HTTPException(503, refusal.detail, refusal.headers)
