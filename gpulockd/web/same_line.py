"""The hint of a refused write: the same request as a line of curl, with the header that was missing."""

from __future__ import annotations

import shlex

import anyio
from starlette.requests import ClientDisconnect, Request

from gpulockd.web.auth import WRITE_HINT

WRONG_TOKEN = (
    "the token that was sent is not this daemon's: print its own with `gpulockd token` on its host, as its user; where "
    "several daemons run there, GPULOCKD_SOCKET names the one"
)

LONGEST_BODY = 1000
BODY_WITHIN_S = 1.0


async def same_line(request: Request) -> str:
    """Return the line that would have worked; the general hint where the request cannot be said in one.

    A request that brought a token needs another token, not another line.
    """
    if "authorization" in request.headers:
        return WRONG_TOKEN
    body = await _body(request)
    host = request.headers.get("host", "")
    if body is None or not host.isascii() or not host.isprintable():
        return WRITE_HINT
    words = ["curl", "-X", request.method, shlex.quote(str(request.url))]
    words += ["-H", '"Authorization: Bearer $(gpulockd token)"']
    words += ["-d", shlex.quote(body)] if body else []
    return " ".join(words)


async def _body(request: Request) -> str | None:
    """The body as text; None if it is long, late or no text."""
    body = b""
    with anyio.move_on_after(BODY_WITHIN_S):
        try:
            async for part in request.stream():
                body += part
                if len(body) > LONGEST_BODY:
                    return None
            text = body.decode()
            return text if all(char.isprintable() or char in "\n\t" for char in text) else None
        except (ClientDisconnect, UnicodeDecodeError):
            return None
    return None
