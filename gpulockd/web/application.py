"""The ASGI application, made of the route table: bodies in, typed answers out, every error a problem."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import anyio
import msgspec
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gpulockd.errors import GpuLockError
from gpulockd.web.auth import Fence, Guesses, Names, caller_of, check_operator, check_writer, gave_wrong_token
from gpulockd.web.backend import Backend
from gpulockd.web.openapi import needed_of, template
from gpulockd.web.problems import ProblemError, of_error, of_form, problem, refusal, response
from gpulockd.web.refusing import refused_changes
from gpulockd.web.routing import Paths
from gpulockd.web.same_line import same_line
from gpulockd.web.streams import Stream
from gpulockd.web.table import Row, Visit
from gpulockd.web.timing import Timed

LONGEST_BODY = 64 * 1024
BODY_WITHIN_S = 10.0
"""How long a body may take to arrive (in seconds)."""

SAFETY = {"x-content-type-options": "nosniff", "cache-control": "no-store"}

_log = structlog.get_logger(__name__)


def application(rows: Iterable[Row], backend: Backend, names: Names) -> Starlette:
    """Return the application that serves these rows for this daemon."""
    by_path: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_path.setdefault(row.path, {})[row.method] = row
    guesses = Guesses()
    made = Starlette(
        middleware=[Middleware(Timed, metrics=backend.metrics), Middleware(Fence, names=names)],
        exception_handlers={
            ProblemError: _on_problem,
            GpuLockError: _on_ours,
            HTTPException: _on_http,
            ClientDisconnect: _on_gone,
            Exception: _on_crash,
        },
    )
    made.router = Paths(
        [Route(path, _Endpoint(rows, backend, guesses), methods=list(rows)) for path, rows in by_path.items()]
    )
    return made


class _Endpoint:
    """All rows of one path, as an application of its own: what it raises is the exception handlers' to answer."""

    def __init__(self, methods: dict[str, Row], backend: Backend, guesses: Guesses) -> None:
        self.route = template(next(iter(methods.values())).path)  # for `Timed`
        self._methods = methods
        self._backend = backend
        self._guesses = guesses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await (await self._answer(Request(scope, receive, send)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        backend, row = self._backend, self._methods["GET" if request.method == "HEAD" else request.method]
        caller = caller_of(request, backend.token, backend.uid, backend.settings.web.writes)
        if gave_wrong_token(request, caller):
            await anyio.sleep(self._guesses.delay_s(anyio.current_time()))
        async with refused_changes(row, request, backend, caller):
            if row.access != "free":
                check_writer(caller, await same_line(request) if caller.is_unknown else "")
            if row.access == "operator":
                check_operator(caller)
            row.check_query(request)
            body = None
            if row.request is not None:
                body = _decoded(await _body(request), row.request)
            answer = await row.handler(Visit(request=request, backend=backend, caller=caller, body=body))
        if isinstance(answer, Response):
            # A stream's head says nothing of its body, which would never end.
            whole = request.method != "HEAD" or not isinstance(answer, Stream)
            return answer if whole else Response(media_type=row.media, headers=SAFETY)
        return Response(msgspec.json.encode(answer), media_type=row.media, headers=SAFETY)


async def _body(request: Request) -> bytes:
    """:raises ProblemError: 413 if it has more than 64 KiB, 415 if it is compressed, 408 if it comes too slowly"""
    close, coding = {"connection": "close"}, request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        detail = f"a body with Content-Encoding {coding[:40]!r} is not read"
        raise refusal(415, "encoded", detail, "send the JSON as it is", headers=close)
    body = bytearray()
    with anyio.move_on_after(BODY_WITHIN_S) as waiting:
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_BODY:
                detail = f"more than {LONGEST_BODY} bytes"
                raise refusal(413, "too_large", detail, "send a smaller body", headers=close)
    if waiting.cancelled_caught:
        raise refusal(408, "slow", "the body did not arrive in time", "send it in one piece", headers=close)
    return bytes(body)


def _decoded(body: bytes, kind: Any) -> Any:
    """Return the body as `kind`, whatever its Content-Type says.

    An empty body says nothing: it is `{}` where all fields are optional.

    :raises ProblemError: 400 if it is not JSON or is missing, 422 if it is of another form
    """
    if not body.strip():
        needed = needed_of(kind)
        if needed:
            form = "{" + ", ".join(f'"{name}": …' for name in needed) + "}"
            raise refusal(400, "empty", "the body is empty", f"send {form}")
        body = b"{}"
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as wrong:
        raise ProblemError(of_form(str(wrong), kind)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        raise refusal(400, "not_json", f"the body is not JSON: {wrong}", "send one JSON object") from None


async def _on_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return response(error.problem, error.headers)


async def _on_ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, GpuLockError)
    found = of_error(error)
    return response(found, {"retry-after": "1"} if found.status == HTTPStatus.SERVICE_UNAVAILABLE else None)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allow = (error.headers or {}).get("Allow", "")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and request.method == "OPTIONS":
        return Response(status_code=204, headers={"allow": allow})
    words = {
        404: ("not_found", "GET /api/v1/openapi.json lists all routes"),
        405: ("method_not_allowed", f"this route takes {allow}"),
    }
    kind, hint = words.get(error.status_code, ("http", "GET /api/v1/openapi.json lists all routes"))
    return response(problem(error.status_code, kind, error.detail, hint), dict(error.headers or {}))


async def _on_gone(_request: Request, _error: Exception) -> Response:
    return response(problem(400, "disconnected", "the body did not arrive", "send it again"))


async def _on_crash(request: Request, error: Exception) -> Response:
    _log.error("web.failed", path=request.url.path, error=repr(error), message="a request failed by our own fault")
    return response(problem(500, "internal", "the daemon failed", "its log says more; please report it"))
