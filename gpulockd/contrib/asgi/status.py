"""`status_app`: who holds which GPU and who waits, read-only, to be mounted in a service's own app."""

from __future__ import annotations

from html import escape
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gpulockd.contrib.looking import Looks, View
from gpulockd.errors import GpuLockError
from gpulockd.ledger.forecast import expected_end, expected_starts
from gpulockd.model import TicketRecord
from gpulockd.units import format_duration


def status_app(pool: str | None = None) -> Starlette:
    """Return an app to mount: `app.mount("/gpu", status_app())`. `/gpu/` is a page, `/gpu/status.json` its facts.

    It names tasks and processes, so put it where only those may look who may know.

    :param pool: the pool's name, if it is not the local one
    """
    looks = Looks(pool)

    async def page(request: Request) -> Response:
        try:
            return HTMLResponse(_page(facts_of(await looks.view())))
        except GpuLockError as away:
            return HTMLResponse(f"<p>{escape(str(away))}</p>", 503)

    async def facts(request: Request) -> Response:
        try:
            return JSONResponse(facts_of(await looks.view()))
        except GpuLockError as away:
            return JSONResponse({"detail": str(away)}, 503)

    return Starlette(routes=[Route("/", page), Route("/status.json", facts)])


def facts_of(view: View) -> dict[str, Any]:
    """The pool as JSON sees it: times in seconds, memory in MiB; null for what cannot be said."""
    snapshot = view.snapshot
    starts = expected_starts(snapshot, view.holds_ms)
    holders = [lease for lease in snapshot.leases if lease.state != "member"]
    return {
        "pool": snapshot.pool,
        "frozen_s": snapshot.frozen_ms / 1000,
        "queued": snapshot.queued,
        "gpus": [
            {
                "key": record.gpu.key,
                "index": record.gpu.index,
                "name": record.gpu.name,
                "memory_mib": record.gpu.memory_mib,
                "used_mib": record.used_mib,
                "state": record.state,
                "holders": [_holder(lease, view) for lease in holders if record.gpu.key in lease.gpus],
            }
            for record in snapshot.gpus
        ],
        "queue": [
            _ticket(ticket) | {"place": ticket.place, "expected_start_s": start.middle_s if start else None}
            for ticket in snapshot.queue
            for start in (starts.get(ticket.id),)
        ],
    }


def _ticket(ticket: TicketRecord) -> dict[str, Any]:
    return {"task": ticket.job.task, "task_id": ticket.job.task_id, "waited_s": ticket.waited_ms / 1000}


def _holder(lease: TicketRecord, view: View) -> dict[str, Any]:
    end = expected_end(view.holds_ms.get(lease.job.task, ()), lease.held_ms)
    return _ticket(lease) | {
        "held_s": lease.held_ms / 1000,
        "percent": lease.percent,
        "note": lease.note,
        "expected_end_s": end.middle_s if end else None,
    }


def _page(facts: dict[str, Any]) -> str:
    cards = [
        _row(
            gpu["key"] if gpu["index"] is None else f"GPU {gpu['index']}",
            gpu["name"] or "",
            "held" if gpu["holders"] else gpu["state"],
            ", ".join(_in_words(holder) for holder in gpu["holders"]),
        )
        for gpu in facts["gpus"]
    ]
    queue = [
        _row(
            f"{ticket['place']}",
            ticket["task"],
            format_duration(ticket["waited_s"]),
            "unknown" if ticket["expected_start_s"] is None else f"in {format_duration(ticket['expected_start_s'])}",
        )
        for ticket in facts["queue"]
    ]
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>GPUs of {escape(facts['pool'])}</title>"
        f"<h1>GPUs of {escape(facts['pool'])}</h1>"
        + _table(("GPU", "model", "state", "held by"), cards)
        + f"<h2>Queue: {facts['queued']} waiting</h2>"
        + (_table(("place", "task", "waited", "expected start"), queue) if queue else "")
        + "</html>"
    )


def _in_words(holder: dict[str, Any]) -> str:
    done = "" if holder["percent"] is None else f", {holder['percent']:.0f} %"
    return f"{holder['task']} ({format_duration(holder['held_s'])}{done})"


def _table(heads: tuple[str, ...], rows: list[str]) -> str:
    head = "".join(f"<th scope='col'>{escape(word)}</th>" for word in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(*words: str) -> str:
    return "<tr>" + "".join(f"<td>{escape(word)}</td>" for word in words) + "</tr>"
