"""A process that holds by its pid does not ask for more: it would wait for itself, which nobody can end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from gpulockd.errors import StoreUnavailable
from gpulockd.model import Process, TicketRecord
from gpulockd.web.auth import Caller
from gpulockd.web.backend import Backend
from gpulockd.web.problems import HoldsAlready
from gpulockd.web.wanting import Plan, check_pid

OTHER_S = 2.0
"""How long another request for the same process may take to be over (in seconds): one that was just cut short does."""


@asynccontextmanager
async def alone(backend: Backend, plan: Plan, caller: Caller) -> AsyncIterator[None]:
    """Be the only request for the process that the plan names, which holds nothing yet but by the same ticket.

    From the grant on the ledger says that it holds, so the next request finds one of both. Of requests for a time, be
    the only one with this ticket.

    :raises CannotHold: if the caller may not hold a lease for it: strangers learn nothing else of it
    :raises HoldsAlready: if it holds, or another request for it is open
    """
    process = plan.process
    who: tuple[object, ...] = process.pid, process.started_ticks
    if plan.pid is not None and process.started_ticks:
        os.close(check_pid(plan.pid, caller, backend.api_socket, backend.store_pid()))
    elif plan.ttl_s is not None and plan.ticket is not None:
        who = caller.user, plan.ticket
    else:
        yield
        return
    with anyio.move_on_after(OTHER_S):
        while who in backend.asking:
            await backend.asking[who].wait()
    if who in backend.asking:
        hint = "wait for that, or end it; several gpus are had by one request, such as -n 2"
        asks = f"pid {process.pid} asks for a GPU" if plan.pid is not None else f"the ticket {plan.ticket} is asked for"
        raise HoldsAlready(f"{asks} already", hint)
    over = backend.asking[who] = anyio.Event()
    try:
        held = await _held_by(backend, process, plan.ticket) if plan.pid is not None else None
        if held is not None:
            hint = f"use it, or 'gpulockd release {held.id}' first; several gpus are had by one request, such as -n 2"
            keys = ", ".join(held.gpus)
            raise HoldsAlready(f"pid {process.pid} holds {keys} already (lease {held.id})", hint, held=held.gpus)
        yield
    finally:
        del backend.asking[who]
        over.set()


async def _held_by(backend: Backend, process: Process, ticket: str | None) -> TicketRecord | None:
    """What it holds by another ticket than this."""
    try:
        seen = await backend.look()
    except StoreUnavailable:
        return None  # the wait goes on until the store is back
    held = (lease for lease in seen.leases if lease.id != ticket and _is_same(lease.process, process))
    return next(held, None)


def _is_same(one: Process | None, other: Process) -> bool:
    return one is not None and (one.pid, one.started_ticks, one.boot_id) == (
        other.pid,
        other.started_ticks,
        other.boot_id,
    )
