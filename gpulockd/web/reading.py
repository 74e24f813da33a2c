"""Handlers that read: how the daemon is, the pool, its gpus, leases and queue; and the one that ends a lease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.forecast import Expected, Holds, expected_end, expected_starts
from gpulockd.model import GPU_KEY_PREFIX, Snapshot, TicketRecord
from gpulockd.web import views
from gpulockd.web.auth import check_owner
from gpulockd.web.lasting import forbid, give_back, is_kept
from gpulockd.web.noting import note
from gpulockd.web.page.queue import reasons
from gpulockd.web.problems import ProblemError, problem, refusal
from gpulockd.web.table import Visit

LONGEST_PAGE = 256
FARTHEST_PLACE = 10**9
MOST_TOKEN = 2**53


async def livez(visit: Visit) -> views.Live:
    """The process serves requests."""
    return views.Live()


async def readyz(visit: Visit) -> views.Ready:
    """:raises ProblemError: 503 with the reasons, if GPUs cannot be had"""
    reasons = visit.backend.reasons()
    snapshot: Snapshot | None = None
    if not reasons:
        snapshot = await visit.backend.look(length=1)
        if not snapshot.offered:
            reasons = (f"nobody offers GPUs in pool {snapshot.pool!r}",)
    if snapshot is None or reasons:
        hint = "the daemon tries again by itself; its log says more"
        raise ProblemError(problem(503, "not_ready", "; ".join(reasons), hint, reasons=reasons))
    return views.Ready(status="ready", pool=snapshot.pool, gpus=sum(record.offered for record in snapshot.gpus))


async def pools(visit: Visit) -> views.Pools:
    """The pool of this daemon."""
    return views.Pools(pools=(views.pool_view(await visit.backend.look(length=1)),))


async def gpus(visit: Visit) -> views.Gpus:
    """The gpus, offered ones first."""
    snapshot = await visit.backend.look(length=1)
    told = {} if visit.backend.oversees is None else visit.backend.oversees.readings()
    latest = {uuid: readings[-1] for uuid, readings in told.items() if readings}
    shown = (views.gpu_view(record, snapshot, latest.get(record.gpu.uuid or "")) for record in snapshot.gpus)
    return views.Gpus(pool=snapshot.pool, gpus=tuple(shown))


async def leases(visit: Visit) -> views.Leases:
    """All leases, with the members of runs, and when each may end."""
    snapshot = await visit.backend.look(length=1)
    planned_s = visit.backend.planned_ends_s()
    ends = expected_ends(snapshot, await visit.backend.holds_ms(), planned_s)
    limits_s = visit.backend.limits_s
    shown = (
        views.lease_view(lease, ends.get(lease.id), limits_s(lease.job), planned_s.get(lease.id))
        for lease in snapshot.leases
    )
    return views.Leases(pool=snapshot.pool, leases=tuple(shown))


def expected_ends(snapshot: Snapshot, holds_ms: Holds, planned_s: Mapping[str, float]) -> dict[str, Expected | None]:
    """Return when each lease may end, as planned or by the last holds of its task; its members end with it."""
    ends: dict[str, Expected | None] = {}
    for lease in snapshot.leases:
        if lease.id in planned_s:
            end_s = planned_s[lease.id]
            ends[lease.id] = Expected(early_s=end_s, middle_s=end_s, late_s=end_s)
        elif lease.state != "member":
            ends[lease.id] = expected_end(holds_ms.get(lease.job.task, ()), lease.held_ms)
    return ends


async def queue(visit: Visit) -> views.Queue:
    """One page of the queue; the first one says when each may begin, and what is in its way."""
    first = visit.number("first", 0, FARTHEST_PLACE)
    length = visit.number("length", LONGEST_PAGE, LONGEST_PAGE)
    snapshot = await visit.backend.look(first=first, length=max(1, length))
    starts: Mapping[str, Expected | None] = {}
    why: Mapping[str, str] = {} if first else reasons(snapshot)
    if not first and snapshot.queue:
        holds_ms = await visit.backend.holds_ms()
        hold_back_s = visit.backend.settings.queue.hold_back_after
        ends_ms = visit.backend.planned_ends_ms()
        starts = expected_starts(snapshot, holds_ms, hold_back_s=hold_back_s, ends_ms=ends_ms)
    shown = (views.queued_view(one, starts.get(one.id), why.get(one.id, "")) for one in snapshot.queue[:length])
    page = tuple(shown)
    return views.Queue(pool=snapshot.pool, queued=snapshot.queued, first=first, queue=page)


async def end_lease(visit: Visit) -> views.Ended:
    """Take exactly the lease away that stands now; who comes after it is not touched.

    With `pending`, what is named is the ticket of a request: it ends wherever it is, and is granted nothing any more.

    :raises ProblemError: 404 if nothing is there, 403 if it is another user's, 409 for a card that several share
    """
    name = visit.request.path_params["id"]
    is_pending = visit.number("pending", 0, 1) == 1
    if is_pending:
        await forbid(visit.backend, name)
    snapshot = await visit.backend.look(length=LONGEST_PAGE if is_pending else 1)
    waits = next((ticket for ticket in snapshot.queue if is_pending and ticket.id == name), None)
    if waits is not None:
        return await _left_queue(visit, waits)
    found = named_lease(snapshot, name)
    check_owner(visit.caller, found.process.user if found.process else "")
    held_here = visit.backend.holdings.get(found.id)
    if held_here is not None and _is_owner(visit, found):
        # Held for a process that cannot give it back itself: its owner does, which is no revocation.
        held_here.give_back()
        return _released(found)
    if _is_owner(visit, found) and is_kept(visit.backend, found):
        # Not taken over yet from the daemon before.
        if not await give_back(visit.backend, found):
            raise _nothing(name)
        return _released(found)
    call = verbs.end(visit.backend.keys, session="", id=found.id, token=found.token, reason="operator")
    answer: Any = await visit.backend.ask(call)
    if not isinstance(answer, a.Ended):
        raise _nothing(name)
    what = f"took {', '.join(found.gpus)} from {views.task_id_of(found)}"
    await note(visit, "revoked", f"{what} (lease {found.id}, token {found.token}, pool {snapshot.pool})")
    return views.Ended(id=found.id, token=found.token, gpus=found.gpus, task=found.job.task, reason=answer.reason)


async def _left_queue(visit: Visit, found: TicketRecord) -> views.Ended:
    check_owner(visit.caller, found.process.user if found.process else "")
    # It may have been granted meanwhile, which no process of it knows yet.
    await visit.backend.ask(verbs.end(visit.backend.keys, session="", id=found.id, token=None, reason="abandoned"))
    return views.Ended(id=found.id, token=0, gpus=(), task=found.job.task, reason="abandoned")


def _released(found: TicketRecord) -> views.Ended:
    return views.Ended(id=found.id, token=found.token, gpus=found.gpus, task=found.job.task, reason="released")


def _is_owner(visit: Visit, found: TicketRecord) -> bool:
    """Whether who asks is known as the lease's own user: by the kernel, or over TCP by the lease's token."""
    if visit.caller.peer is None:
        return visit.number("token", 0, MOST_TOKEN) == found.token
    return found.process is not None and visit.caller.user == found.process.user


def named_lease(snapshot: Snapshot, name: str) -> TicketRecord:
    """Return the lease of that id, or the one on the gpu of that key or index.

    :raises ProblemError: 404 if nothing is there, 409 for a card that several share
    """
    key = f"{GPU_KEY_PREFIX}{int(name)}" if name.isascii() and name.isdigit() and len(name) < 6 else name
    holders = [lease for lease in snapshot.leases if lease.state != "member"]
    found = [lease for lease in holders if lease.id == name] or [lease for lease in holders if key in lease.gpus]
    if not found:
        raise _nothing(name)
    if len(found) > 1:
        ids = ", ".join(lease.id for lease in found)
        raise refusal(409, "ambiguous", f"{name} is shared by {len(found)} leases", f"name one of them: {ids}")
    return found[0]


def _nothing(name: str) -> ProblemError:
    return refusal(404, "not_found", f"nobody holds {name[:128]!r}", "GET /api/v1/leases lists what is held")
