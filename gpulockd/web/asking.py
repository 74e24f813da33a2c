"""POST /api/v1/leases: who may ask for how many, and the stream that answers."""

from __future__ import annotations

from gpulockd.errors import StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.web import wanting
from gpulockd.web.alone import alone
from gpulockd.web.auth import Caller, check_owner
from gpulockd.web.backend import Backend
from gpulockd.web.holding import Holding
from gpulockd.web.problems import of_error, refusal
from gpulockd.web.streams import Stream, Write, as_line
from gpulockd.web.table import Visit

MOST_WAITERS = 256
"""How many leases one user may ask for at a time through the daemon; each costs a thread and three connections."""

MOST_LEFT_HERE = 32
MOST_LEFT_BY_OPERATORS = 256
"""How many leases the daemon holds for one user's processes or for a time, after their requests have ended: they cost
the same. The daemon's own user and root may have more."""


async def ask_lease(visit: Visit) -> Stream:
    """Ask for gpus; the answer is one JSON object a line.

    :raises ImpossibleRequest: if nothing can be asked for so
    :raises ConfigError: if a duration cannot be read
    :raises ProblemError: 403 if the session, or the lease to be joined, is another user's, 429 if this user has too
        many such requests open, or too many leases that the daemon holds
    """
    backend, caller = visit.backend, visit.caller
    plan = wanting.plan_of(visit.body, backend.published(), caller)
    who = caller.user
    if backend.waiters[who] >= MOST_WAITERS:
        detail = f"{backend.waiters[who]} requests of {who or 'TCP clients'} are open"
        raise refusal(429, "too_many", detail, "end some of them, or use the Python client, which shares one session")
    await _check_joins(backend, plan, caller)
    shared = plan.session is not None and await _is_there(backend, plan, caller)
    stays = plan.pid is not None or plan.ttl_s is not None
    most = MOST_LEFT_BY_OPERATORS if caller.trusted else MOST_LEFT_HERE
    if stays and plan.ticket not in backend.holdings and backend.staying[who] >= most:
        detail = f"the daemon holds {backend.staying[who]} leases of {who or 'TCP clients'} for a process or for a time"
        raise refusal(429, "too_many", detail, "DELETE /api/v1/leases/{id} what is not needed, or ask for several gpus")

    async def work(write: Write) -> None:
        backend.waiters[who] += 1
        try:
            async with alone(backend, plan, caller):
                known = backend.holdings.get(plan.ticket or "") if stays else None
                if known is not None and await known.tell_again(plan.process, write):
                    return
                await Holding(backend, plan, caller, ends_session=not shared).run(write)
        finally:
            backend.waiters[who] -= 1

    return Stream(
        work,
        media_type="application/x-ndjson",
        on_error=lambda error: as_line(wanting.FailedLine(problem=of_error(error))),
    )


async def _check_joins(backend: Backend, plan: wanting.Plan, caller: Caller) -> None:
    """Who joins a lease is of its user. A guard lets in by descent, which is more: there it has the word.

    :raises ProblemError: 403 if the lease is another user's
    :raises StoreUnavailable: if nobody can say whose it is
    """
    if plan.ask.inside is None or caller.trusted:
        return
    seen = await backend.look()
    joined = next((lease for lease in seen.leases if lease.id == plan.ask.inside[0]), None)
    if joined is not None and not seen.guarded:
        check_owner(caller, joined.process.user if joined.process is not None else "")


async def _is_there(backend: Backend, plan: wanting.Plan, caller: Caller) -> bool:
    """Whether the session that the caller has chosen has more than this ticket: it does not end with the request then.

    :raises ProblemError: 403 if it is another user's
    """
    try:
        answer = await backend.ask(verbs.keepalive(backend.keys, session=plan.session or "", echo=0, leases=[]))
        if not isinstance(answer, a.Alive):
            return False
        seen = await backend.look()
    except StoreUnavailable:
        return False  # the wait goes on until the store is back
    others = [one for one in (*seen.leases, *seen.queue) if one.session == plan.session]
    users = {one.process.user for one in others if one.process is not None}
    if not caller.trusted and users - {caller.user}:
        hint = "choose a random id for a session of your own"
        raise refusal(403, "forbidden", "the session belongs to another user", hint)
    return any(one.id != plan.ticket for one in others)
