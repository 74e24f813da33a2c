"""PATCH /api/v1/leases/{id}: what a lease's user says of it while it is held: how far it is, how long it goes on."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from gpulockd.client.whoami import started_ticks
from gpulockd.errors import LeaseLost
from gpulockd.ledger import answers as a
from gpulockd.ledger import limits_verbs, verbs
from gpulockd.model import TicketRecord
from gpulockd.units import parse_duration_s
from gpulockd.web.auth import check_owner
from gpulockd.web.problems import refusal
from gpulockd.web.reading import named_lease
from gpulockd.web.table import Visit
from gpulockd.web.ttl import check_ttl
from gpulockd.web.wanting import Duration

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Message = Annotated[str, msgspec.Meta(max_length=500)]


class Amendment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is new of a lease; what is left out stays. At least one field must be given.

    `percent` (0 to 100) and `message` are the task's heartbeat. `ttl`: a lease that was asked for with a `ttl` goes on
    for so long from now; `renew`: for as long as it was asked for. `stop`: its holder is asked to save its work and
    leave, as at the soft limit; that is no limit reached.
    """

    percent: Percent | None = None
    message: Message | None = None
    ttl: Duration | None = None
    renew: bool = False
    stop: bool = False
    over: bool = False


class Amended(msgspec.Struct, frozen=True, kw_only=True):
    """The lease as it is now. `ends_in_s`: until it ends by itself; null: as long as its holder."""

    id: str
    token: int
    gpus: tuple[str, ...]
    task: str
    percent: float | None
    note: str | None
    ends_in_s: float | None
    stopping: bool


async def amend_lease(visit: Visit) -> Amended:
    """Say how far a lease is, let it go on, or ask its holder to stop.

    :raises ProblemError: 404 if nothing is there, 403 if it is another user's, 409 for a ttl of a lease that has none
    :raises LeaseLost: if it has just ended
    """
    body: Amendment = visit.body
    if body == Amendment():
        hint = 'send for example {"percent": 45, "message": "frame 100"}'
        raise refusal(422, "invalid", "the body says nothing", hint)
    ttl_s = parse_duration_s(body.ttl, "ttl") if body.ttl is not None else None
    found = named_lease(await visit.backend.look(length=1), visit.request.path_params["id"])
    check_owner(visit.caller, found.process.user if found.process else "")
    is_renewed = ttl_s is not None or body.renew
    if is_renewed:
        await _renew(visit, found, check_ttl(ttl_s) if ttl_s is not None else None)
    if body.percent is not None or body.message is not None or is_renewed:
        found = await _noted(visit, found, body)
    if body.stop:
        await _asked_to_stop(visit, found)
    if body.over:
        await _given_back(visit, found)
    held_here = visit.backend.holdings.get(found.id)
    return Amended(
        id=found.id,
        token=found.token,
        gpus=found.gpus,
        task=found.job.task,
        percent=found.percent,
        note=found.note,
        ends_in_s=held_here.ends_in_s if held_here is not None else None,
        stopping=body.stop or found.asked_to_stop or found.level in ("soft", "hard"),
    )


async def _renew(visit: Visit, found: TicketRecord, ttl_s: float | None) -> None:
    held_here = visit.backend.holdings.get(found.id)
    if held_here is None and found.id not in {lease.id for lease in (await visit.backend.look()).leases}:
        raise _ended(found)
    if held_here is None or held_here.ends_in_s is None:
        detail = f"the lease {found.id} has no ttl: it lasts as long as its holder"
        raise refusal(409, "not_timed", detail, 'only a lease that was asked for with {"ttl": "10m"} is renewed')
    if not await held_here.renew(ttl_s):
        raise _ended(found)


async def _noted(visit: Visit, found: TicketRecord, body: Amendment) -> TicketRecord:
    percent = found.percent if body.percent is None else body.percent
    note = (found.note or "") if body.message is None else body.message
    keys = visit.backend.keys
    call = verbs.progress(keys, session="", id=found.id, token=found.token, percent=percent, note=note)
    answer: Any = await visit.backend.ask(call)
    if not isinstance(answer, a.Noted):
        raise _ended(found)
    return msgspec.structs.replace(found, percent=percent, note=note)


async def _asked_to_stop(visit: Visit, found: TicketRecord) -> None:
    call = limits_verbs.reach(
        visit.backend.keys, id=found.id, token=found.token, level="operator", after_ms=0, stop=True
    )
    answer: Any = await visit.backend.ask(call)
    if not isinstance(answer, limits_verbs.Marked):
        raise _ended(found)


async def _given_back(visit: Visit, found: TicketRecord) -> None:
    """A run that was short gives back what it had not yet begun to keep; the kernel says that it is the holder."""
    peer, process = visit.caller.peer, found.process
    if peer is None or process is None or (peer.pid, started_ticks(peer.pid)) != (process.pid, process.started_ticks):
        detail = f"the lease {found.id} is held by another process"
        raise refusal(403, "forbidden", detail, "DELETE takes it from its holder")
    keys = visit.backend.keys
    call = verbs.end(keys, session=found.session, id=found.id, token=found.token, reason="released")
    answer: Any = await visit.backend.ask(call)
    if not isinstance(answer, a.Ended):
        raise _ended(found)
    goodbye = verbs.end(keys, session="", id=found.session, token=None, reason="released", what="session")
    await visit.backend.ask(goodbye)


def _ended(found: TicketRecord) -> LeaseLost:
    return LeaseLost(f"the lease {found.id} has just ended", lease=found.id, token=found.token, reason="ended")
