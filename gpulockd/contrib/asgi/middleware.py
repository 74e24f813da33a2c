"""`GpuMiddleware`: a GPU for each request of an ASGI app or of one Starlette route."""

from __future__ import annotations

from typing import Unpack

import anyio
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpulockd.client.wishes import Duration
from gpulockd.contrib.asgi.options import Options
from gpulockd.contrib.asgi.watching import Watch
from gpulockd.contrib.asgi.wish import Wish
from gpulockd.errors import GpuLockTimeout, LeaseLost, StoreUnavailable

MOST_BODY = 1 << 20
"""How much of a request is read before its GPU is asked for (in bytes); of a longer one the app reads the rest."""


class GpuMiddleware:
    """Holds a GPU while the app answers; the lease is `request.state.gpu`.

    `Route("/infer", infer, methods=["POST"], middleware=[Middleware(GpuMiddleware, memory="4GiB", wait="2s")])`

    :param wait: how long a request may wait (seconds or "2s"); 0: it takes a free GPU or none, and never queues
    :param options: as for `gpu_lock`
    :raises ImpossibleRequest: if they name nothing that could be granted
    """

    def __init__(self, app: ASGIApp, *, wait: Duration = 0, **options: Unpack[Options]) -> None:
        self.app = app
        self._wish = Wish(wait, **options)

    def __repr__(self) -> str:
        return f"<GpuMiddleware {self._wish!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        intake, answer = _Intake(receive), _Answer(send)
        if not await intake.read():
            return
        try:
            with anyio.CancelScope() as serving:
                await self._serve(scope, intake, answer, serving)
        except (GpuLockTimeout, StoreUnavailable, LeaseLost) as trouble:
            if answer.begun:
                raise
            refusal = await self._wish.refusal(trouble, scope)
            await JSONResponse({"detail": refusal.detail}, 503, refusal.headers)(scope, receive, send)

    async def _serve(self, scope: Scope, intake: _Intake, answer: _Answer, serving: anyio.CancelScope) -> None:
        def hang_up() -> None:
            intake.gone.set()
            if not answer.ended:  # what comes after the answer is the app's own business
                serving.cancel()

        if intake.goes_on:
            async with self._wish.lock(scope) as lease:
                scope.setdefault("state", {})["gpu"] = lease
                await self.app(scope, intake.receive, answer.send)
            return
        async with Watch(intake.next_message, hang_up), self._wish.lock(scope) as lease:
            scope.setdefault("state", {})["gpu"] = lease
            await self.app(scope, intake.receive, answer.send)


class _Intake:
    """What the client sends: read before the GPU is asked for, and given to the app afterwards."""

    def __init__(self, receive: Receive) -> None:
        self.next_message = receive
        self.goes_on = True
        self.gone = anyio.Event()
        self._kept: list[Message] = []

    async def read(self) -> bool:
        """Read the body, or the beginning of a long one. Returns whether the client is still there."""
        length = 0
        while self.goes_on and length <= MOST_BODY:
            message = await self.next_message()
            self._kept.append(message)
            length += len(message.get("body", b""))
            if message["type"] == "http.disconnect":
                return False
            self.goes_on = bool(message.get("more_body", False))
        return True

    async def receive(self) -> Message:
        """What the app receives."""
        if self._kept:
            return self._kept.pop(0)
        if self.goes_on:
            return await self.next_message()
        await self.gone.wait()
        return {"type": "http.disconnect"}


class _Answer:
    """What the app sends: whether its answer has begun, and ended."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = self.ended = False

    async def send(self, message: Message) -> None:
        """Pass on what the app sends."""
        self.begun = True
        await self._send(message)
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)
