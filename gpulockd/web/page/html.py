"""The page as HTML: whole, or only some of its parts for a page that is open.

Its law: whatever programs say of themselves is escaped and has no control characters, and nothing in it comes from
elsewhere or is a script or a style of its own; so its Content-Security-Policy needs no exception.
"""

from __future__ import annotations

from typing import Any, get_args
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from starlette.responses import HTMLResponse

from gpulockd.errors import GpuLockError
from gpulockd.events import AnyEvent
from gpulockd.units import clean
from gpulockd.web.backend import Backend
from gpulockd.web.page import changes, parts, static, words
from gpulockd.web.page.parts import MAKERS, Part
from gpulockd.web.page.timeline import SPANS_MIN
from gpulockd.web.table import Visit

KEPT_S = 0.25
"""How long the HTML of a part serves all who look, if nothing has happened (in seconds)."""

PAUSE_S = 0.3
"""How often it is made at most, whatever happens and however many look (in seconds)."""

KINDS = " ".join(sorted(kind.__struct_config__.tag for kind in get_args(AnyEvent)))
"""The events that an open page listens to: a browser must name each."""

HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("gpulockd.web.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=_shown,
    )
    made.filters.update(
        age=words.age,
        clock=words.clock,
        iso=words.iso,
        share=words.percent,
        value=changes.value_of,
        dotted=dotted,
        title=lambda one: words.alert_title(one.rule, one.message),
        path=lambda text: quote(str(text), safe=""),
    )
    made.globals.update(glyphs=words.GLYPHS, static=static.urls(), spans_min=SPANS_MIN)
    return made


def _shown(value: object) -> object:
    """Return what is to be written: text without the characters that hide or turn others."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else clean(value)


def dotted(path: str) -> Markup:
    """Return the name of a setting, which a line may break at its dots and nowhere else."""
    return Markup(".<wbr>").join(clean(path).split("."))


_templates = _environment()


async def page(visit: Visit) -> HTMLResponse:
    """The page of this moment; with `parts`, only those of it, with `span` so many minutes of the timeline."""
    span_min = int(visit.request.query_params.get("span", 0))
    wanted = visit.request.query_params.get("parts")
    names = list(MAKERS) if wanted is None else wanted.split(",")
    backend = visit.backend
    try:
        away = ""
        await backend.picture()
    except GpuLockError as trouble:
        away = trouble.message
    made = {name: await _html(name, backend, away, span_min) for name in dict.fromkeys(names)}
    if wanted is not None:
        return HTMLResponse("\n".join(made.values()), headers=HEADERS)
    given: dict[str, Any] = {"pool": backend.pool, "writes": backend.settings.web.writes, "kinds": KINDS}
    return HTMLResponse(_templates.get_template("page.html").render(parts=made, **given), headers=HEADERS)


async def _html(name: str, backend: Backend, away: str, span_min: int) -> str:
    if away:
        # Nobody waits for the same trouble once for each part.
        return rendered(parts.without_store(name, backend, away))

    async def make() -> str:
        return rendered(await parts.part(name, backend, span_min=span_min))

    chosen = span_min if name == "timeline" else 0
    return await backend.pages.get(
        f"html {name} {chosen}", KEPT_S, make, mark=lambda: backend.feed.last, pause_s=PAUSE_S
    )


def rendered(part: Part) -> str:
    """Return the HTML of one part."""
    return _templates.get_template(f"{part.name}.html").render(part=part, data=part.data)
