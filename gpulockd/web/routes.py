"""The route table: every route of the API in one place; the application and its OpenAPI document are made from it."""

from __future__ import annotations

from typing import Any

from gpulockd.web import holding, page, reading, steering, streams, views, wanting
from gpulockd.web.openapi import document
from gpulockd.web.table import Query, Row, Visit


async def openapi(visit: Visit) -> dict[str, Any]:
    """The OpenAPI document."""
    return document(ROWS, visit.backend.version)


_PAGE = (Query("first", "places before the page (0: from the head)"), Query("length", "places on it (at most 256)"))
_SINCE = (
    Query("since", "also the events of the last so many seconds, or '10m'", "string"),
    Query("follow", "0: end after those that there are"),
)

ROWS: tuple[Row, ...] = (
    Row(method="GET", path="/", handler=page.page, answer=str, media="text/html", summary="The page"),
    Row(method="GET", path="/livez", handler=reading.livez, answer=views.Live, summary="The daemon runs"),
    Row(method="GET", path="/readyz", handler=reading.readyz, answer=views.Ready, summary="Its GPUs can be had"),
    Row(method="GET", path="/api/v1/pools", handler=reading.pools, answer=views.Pools, summary="The pools"),
    Row(method="GET", path="/api/v1/gpus", handler=reading.gpus, answer=views.Gpus, summary="The gpus"),
    Row(
        method="POST",
        path="/api/v1/gpus/{id:path}/drain",
        handler=steering.drain,
        answer=views.Steered,
        access="writer",
        summary="Let nobody begin on a gpu any more, named by its index, key or UUID",
    ),
    Row(
        method="POST",
        path="/api/v1/gpus/{id:path}/resume",
        handler=steering.resume,
        answer=views.Steered,
        access="writer",
        summary="Put a gpu back into the pool",
    ),
    Row(method="GET", path="/api/v1/leases", handler=reading.leases, answer=views.Leases, summary="Who holds what"),
    Row(
        method="GET",
        path="/api/v1/queue",
        handler=reading.queue,
        answer=views.Queue,
        query=_PAGE,
        summary="Who waits, in order",
    ),
    Row(
        method="POST",
        path="/api/v1/leases",
        handler=holding.ask_lease,
        request=wanting.LeaseWish,
        answer=wanting.Line,
        access="writer",
        media="application/x-ndjson",
        summary="Ask for gpus: the place in the queue, then the lease, one JSON object a line",
    ),
    Row(
        method="DELETE",
        path="/api/v1/leases/{id:path}",
        handler=reading.end_lease,
        answer=views.Ended,
        access="writer",
        summary="Take a lease away, named by its id, its key or the index of its gpu",
    ),
    Row(
        method="GET",
        path="/api/v1/events",
        handler=streams.events,
        answer=str,
        media="text/event-stream",
        query=_SINCE,
        summary="What happens, as server-sent events; Last-Event-ID is the seq of the last one had",
    ),
    Row(method="GET", path="/api/v1/openapi.json", handler=openapi, answer=dict, summary="This document"),
)
