"""What the audit is told of changes of the configuration that the routes refuse before the daemon's own part sees them.

A wrong token and a body that no setting takes are deeds too: who reads the audit must see that somebody tried. A
request without any token is none, for every curious reader makes those.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.requests import Request

from gpulockd.web.auth import Caller
from gpulockd.web.backend import Backend
from gpulockd.web.problems import ProblemError
from gpulockd.web.table import Row

CONFIG = "/api/v1/config"

NOTED = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY}
)
"""What is refused for who asks or for what the body says; all else is the daemon's own to note."""


@asynccontextmanager
async def refused_changes(row: Row, request: Request, backend: Backend, caller: Caller) -> AsyncIterator[None]:
    """Write a line for a change of the configuration that is refused in here."""
    try:
        yield
    except ProblemError as refused:
        problem, service = refused.problem, backend.configuring
        is_change = row.method != "GET" and row.path.startswith(CONFIG) and problem.status in NOTED
        is_nobodys = caller.is_unknown and "authorization" not in request.headers
        if is_change and not is_nobodys and service is not None:
            author = caller.user or ("wrong token" if caller.is_unknown else "token")
            origin = "api" if caller.peer is None else "socket"
            text = f"{row.method} {row.path}: {problem.detail}"
            await service.note_refused(text=text, author=author, origin=origin)
        raise
