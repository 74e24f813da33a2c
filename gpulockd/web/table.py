"""A row of the route table, and what its handler is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from starlette.requests import Request

from gpulockd.web.auth import Caller
from gpulockd.web.backend import Backend
from gpulockd.web.problems import refusal

Access = Literal["free", "writer"]
"""Who may call a route: everybody, or who can say who he is; whose lease it is the handler looks at."""


class Query(msgspec.Struct, frozen=True):
    """A parameter of the query, for the OpenAPI document."""

    name: str
    summary: str
    type: Literal["integer", "string"] = "integer"


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """One request: what was sent, by whom, to which daemon. `body` is of the row's request type."""

    request: Request
    backend: Backend
    caller: Caller
    body: Any

    def number(self, name: str, default: int, most: int) -> int:
        """Return a whole number of the query, 0 to `most`.

        :raises ProblemError: 422 if it is none
        """
        text = self.request.query_params.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= most):
            raise refusal(422, "invalid", f"{name}={text[:40]!r}", f"say a whole number from 0 to {most}")
        return int(text)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One route: where, who may, what goes in and what comes out. `media` is the answer's type."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    handler: Callable[[Visit], Awaitable[Any]]
    answer: Any
    summary: str
    request: Any = None
    access: Access = "free"
    media: str = "application/json"
    query: tuple[Query, ...] = ()
