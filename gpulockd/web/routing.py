"""Which route a path means: one without a parameter is found at once, the others are tried one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send


class Paths(Router):
    """The routes of the API by their paths. A path that is written out goes before one that has a parameter."""

    def __init__(self, routes: Sequence[Route]) -> None:
        super().__init__(routes, redirect_slashes=False)
        self._plain = {route.path: route for route in routes if not route.param_convertors}

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        plain = self._plain.get(scope["path"])
        if plain is None:
            return await super().app(scope, receive, send)
        scope["endpoint"], scope["path_params"] = plain.endpoint, {}
        await plain.handle(scope, receive, send)
