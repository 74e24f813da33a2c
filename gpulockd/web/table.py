"""A row of the route table, and what its handler is given."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from starlette.requests import Request

from gpulockd.web.auth import Caller
from gpulockd.web.backend import Backend
from gpulockd.web.problems import refusal

Access = Literal["free", "writer", "operator"]
"""Who may call a route: everybody; who can say who he is, and the handler looks whose lease it is; or root, the
daemon's own user and who has the token."""

FARTHEST = 10**9
DURATION = r"^([0-9]{1,9}(\.[0-9]{1,9})?|([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d)){1,9})$"
"""Seconds, or text such as "10m" or "1h30m"."""


class Query(msgspec.Struct, frozen=True):
    """A parameter of the query, for the OpenAPI document: a whole number is 0 to `most`; `pattern` is of a text.

    `place` "header": a header instead, which the handler reads.
    """

    name: str
    summary: str
    type: Literal["integer", "string"] = "integer"
    most: int = FARTHEST
    pattern: str = ""
    place: Literal["query", "header"] = "query"

    def check(self, text: str) -> None:
        """:raises ProblemError: 422 unless the text is what this parameter takes"""
        if self.type == "integer":
            _check_number(self.name, text, self.most)
        elif self.pattern and re.fullmatch(self.pattern, text) is None:
            raise refusal(422, "invalid", f"{self.name}={text[:40]!r}", f"say {self.summary}")


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
        return _check_number(name, text, most)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One route: where, who may, what goes in and what comes out. `media` is the answer's type.

    `form` is what the OpenAPI document says of a body that the handler itself checks; `problems` are the statuses of
    its own, besides those that follow from the rest.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    handler: Callable[[Visit], Awaitable[Any]]
    answer: Any
    summary: str
    request: Any = None
    form: Any = None
    access: Access = "free"
    media: str = "application/json"
    query: tuple[Query, ...] = ()
    problems: tuple[int, ...] = ()

    def check_query(self, request: Request) -> None:
        """:raises ProblemError: 422 if a parameter of the query is not what the document says"""
        for query in (one for one in self.query if one.place == "query"):
            for text in request.query_params.getlist(query.name):
                query.check(text)


def _check_number(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= most):
        raise refusal(422, "invalid", f"{name}={text[:40]!r}", f"say a whole number from 0 to {most}")
    return int(text)
