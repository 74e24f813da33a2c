"""The page at `/`: who has each GPU and who waits, as plain tables without scripts."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from starlette.responses import HTMLResponse

from gpulockd.client.refusals import holder_text
from gpulockd.model import Snapshot, Wants
from gpulockd.units import format_duration
from gpulockd.web.table import Visit

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_STYLE = (
    ":root{color-scheme:light dark}body{font:15px system-ui,sans-serif;margin:2rem;max-width:60rem}"
    "table{border-collapse:collapse;width:100%;margin-bottom:2rem}"
    "th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884}"
)


async def page(visit: Visit) -> HTMLResponse:
    """The tables of this moment."""
    return HTMLResponse(_html(await visit.backend.look()), headers=_HEADERS)


def _html(snapshot: Snapshot) -> str:
    gpus = [
        (
            str(record.gpu),
            record.gpu.name or "",
            record.state,
            "; ".join(holder_text(lease) for lease in snapshot.leases if _sits(lease.gpus, record.gpu.key, lease.of))
            or "free",
        )
        for record in snapshot.gpus
    ]
    queue = [
        (
            str(ticket.place),
            ticket.job.task,
            str(Wants.parse(ticket.wants)),
            format_duration(ticket.waited_ms / 1000),
            str(ticket.priority),
        )
        for ticket in snapshot.queue
    ]
    frozen = ""
    if snapshot.frozen_ms:
        frozen = f"<p><strong>Nothing is granted for {format_duration(snapshot.frozen_ms / 1000)} more.</strong></p>"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>gpulockd: {escape(snapshot.pool)}</title><style>{_STYLE}</style>"
        f"<h1>Pool {escape(snapshot.pool)}</h1>{frozen}"
        + _table("GPUs", ("GPU", "Name", "State", "Held by"), gpus)
        + _table(f"Queue: {snapshot.queued}", ("Place", "Task", "Wants", "Waits for", "Priority"), queue)
    )


def _sits(keys: Iterable[str], key: str, of: str | None) -> bool:
    return key in keys and not of


def _table(title: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
