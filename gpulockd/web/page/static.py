"""The page's files: styles, scripts and its icon, served from the package with their true types.

A name with the file's digest (`?v=`) may be kept for ever; without it the browser asks again by ETag.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources

import msgspec
from starlette.responses import Response

from gpulockd.web.table import Row, Visit

TYPES = {
    "theme.js": "text/javascript",
    "page.js": "text/javascript",
    "uplot.js": "text/javascript",
    "page.css": "text/css",
    "uplot.css": "text/css",
    "icon.svg": "image/svg+xml",
}
"""Every file that is served, and nothing else."""

FOR_EVER = "public, max-age=31536000, immutable"


class File(msgspec.Struct, frozen=True):
    """One file, and the digest of its content."""

    name: str
    media: str
    body: bytes
    digest: str

    @property
    def url(self) -> str:
        """Where it is, by its content."""
        return f"/static/{self.name}?v={self.digest}"

    def answer(self, version: str | None, known: str) -> Response:
        """Return the file, or 304 to who has it.

        :param version: the digest that was asked for, if any
        :param known: the header If-None-Match
        """
        headers = {
            "etag": f'"{self.digest}"',
            "cache-control": FOR_EVER if version == self.digest else "no-cache",
            "x-content-type-options": "nosniff",
            "cross-origin-resource-policy": "same-origin",
        }
        if self.digest in known:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.media, headers=headers)


def _read(name: str, media: str) -> File:
    body = (resources.files("gpulockd.web") / "static" / name).read_bytes()
    return File(name, media, body, hashlib.sha256(body).hexdigest()[:16])


FILES = {name: _read(name, media) for name, media in TYPES.items()}


def urls() -> dict[str, str]:
    """Return where each file is, by its name."""
    return {name: file.url for name, file in FILES.items()}


def _handler(file: File) -> Callable[[Visit], Awaitable[Response]]:
    async def serve(visit: Visit) -> Response:
        request = visit.request
        return file.answer(request.query_params.get("v"), request.headers.get("if-none-match", ""))

    # The OpenAPI document names each operation by its handler.
    serve.__name__ = f"static_{file.name.replace('.', '_')}"
    return serve


ROWS: tuple[Row, ...] = tuple(
    Row(
        method="GET",
        path=f"/static/{file.name}",
        handler=_handler(file),
        answer=str,
        media=file.media,
        summary=f"A file of the page: {file.name}",
    )
    for file in FILES.values()
)
