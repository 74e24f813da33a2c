"""The route table: every route of the API in one place; the application and its OpenAPI document are made from it."""

from __future__ import annotations

from typing import Any

from gpulockd.web import (
    alerts,
    amending,
    asking,
    config_routes,
    monitoring_routes,
    reading,
    steering,
    streams,
    views,
    wanting,
)
from gpulockd.web.openapi import document
from gpulockd.web.page import routes as page_routes
from gpulockd.web.table import DURATION, Query, Row, Visit


async def openapi(visit: Visit) -> dict[str, Any]:
    """The OpenAPI document, as it holds for who asks: the unix socket needs no token."""
    needs_token = visit.caller.peer is None and visit.backend.settings.web.writes == "token"
    return document(ROWS, visit.backend.version, needs_token=needs_token)


_PAGE = (Query("first", "places before the page (0: from the head)"), Query("length", "places on it", most=256))
_SINCE = (
    Query("since", "how far back: seconds, or '10m'", "string", pattern=DURATION),
    Query("follow", "0: end after those that there are; 1: go on", most=1),
    Query("Last-Event-ID", "the seq of the last event had: go on after it", most=10**15, place="header"),
)

ROWS: tuple[Row, ...] = (
    *page_routes.ROWS,
    Row(method="GET", path="/livez", handler=reading.livez, answer=views.Live, summary="The daemon runs"),
    Row(method="GET", path="/readyz", handler=reading.readyz, answer=views.Ready, summary="Its GPUs can be had"),
    Row(method="GET", path="/api/v1/pools", handler=reading.pools, answer=views.Pools, summary="The pools"),
    Row(method="GET", path="/api/v1/gpus", handler=reading.gpus, answer=views.Gpus, summary="The gpus"),
    Row(
        method="POST",
        path="/api/v1/gpus/{id:path}/drain",
        handler=steering.drain,
        answer=views.Steered,
        access="operator",
        summary="Let nobody begin on a gpu any more, named by its index, key or UUID",
    ),
    Row(
        method="POST",
        path="/api/v1/gpus/{id:path}/resume",
        handler=steering.resume,
        answer=views.Steered,
        access="operator",
        problems=(409,),
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
        handler=asking.ask_lease,
        request=wanting.LeaseWish,
        answer=wanting.Line,
        access="writer",
        media="application/x-ndjson",
        problems=(409, 429),
        summary="Ask for gpus: the place in the queue, then the lease, one JSON object a line",
    ),
    Row(
        method="PATCH",
        path="/api/v1/leases/{id:path}",
        handler=amending.amend_lease,
        request=amending.Amendment,
        answer=amending.Amended,
        access="writer",
        problems=(409, 410),
        summary="Say how far a lease is, let it go on, or ask its holder to stop",
    ),
    Row(
        method="DELETE",
        path="/api/v1/leases/{id:path}",
        handler=reading.end_lease,
        answer=views.Ended,
        access="writer",
        problems=(409,),
        query=(
            Query("token", "over TCP: the lease's own, by which its user gives it back", most=reading.MOST_TOKEN),
            Query("pending", "1: the id is the ticket of a request, which is granted nothing any more", most=1),
        ),
        summary="Take a lease away, named by its id, its key or the index of its gpu",
    ),
    Row(
        method="GET",
        path="/api/v1/events",
        handler=streams.events,
        answer=streams.Told,
        media="text/event-stream",
        query=_SINCE,
        summary="What happens, as server-sent events; Last-Event-ID is the seq of the last one had",
    ),
    *config_routes.ROWS,
    *alerts.ROWS,
    *monitoring_routes.ROWS,
    Row(method="GET", path="/api/v1/openapi.json", handler=openapi, answer=dict, summary="This document"),
)
