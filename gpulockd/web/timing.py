"""Takes the time of each request until its answer begins, by the route's template: so a stream counts as well."""

from __future__ import annotations

from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpulockd.web.metrics import Metrics

NO_ROUTE = "none"


class Timed:
    """Tells `metrics` of each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began_s = monotonic()

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("endpoint"), "route", NO_ROUTE)
                method = scope["method"] if route != NO_ROUTE else "any"
                self.metrics.requested(method, route, message["status"], monotonic() - began_s)
            await send(message)

        return await self.app(scope, receive, timed)
