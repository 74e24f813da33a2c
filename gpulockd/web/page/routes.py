"""The rows of the route table that are the page."""

from __future__ import annotations

from gpulockd.web.page import html, static
from gpulockd.web.page.parts import MAKERS
from gpulockd.web.page.timeline import SPANS_MIN
from gpulockd.web.table import Query, Row

_PART = f"({'|'.join(MAKERS)})"
_SPANS = "|".join(map(str, SPANS_MIN))
_PARTS = f"^{_PART}(,{_PART})*$"

ROWS: tuple[Row, ...] = (
    Row(
        method="GET",
        path="/",
        handler=html.page,
        answer=str,
        media="text/html",
        query=(
            Query("parts", f"only some of {', '.join(MAKERS)}, with commas between", "string", pattern=_PARTS),
            Query("span", f"how many minutes the timeline shows: {_SPANS}", "string", pattern=f"^({_SPANS})$"),
        ),
        summary="The page",
    ),
    *static.ROWS,
)
