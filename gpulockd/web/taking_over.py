"""A daemon that begins takes over the leases that the one before it kept, and gives back what nobody was told of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

import anyio
import structlog

from gpulockd.client.table import Ask
from gpulockd.client.waiting import Patience
from gpulockd.client.whoami import started_ticks
from gpulockd.clock import boottime_s
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger import verbs
from gpulockd.model import Gpu, Process, TicketRecord, Wants
from gpulockd.web.auth import Caller, Peer
from gpulockd.web.backend import Backend
from gpulockd.web.holding import Holding
from gpulockd.web.lasting import give_back, is_kept
from gpulockd.web.timed import Timed
from gpulockd.web.wanting import Plan

WITHIN_S = 20.0
"""How long a daemon that begins may be busy with this, before it says READY (in seconds)."""

RETRY_S = 1.0
UNTOLD_S = 25.0
"""How long a lease stands that nobody was told of (in seconds); until then its request may be asked again."""

_PATIENCE = Patience(max_wait_s=2.0, poll_interval_s=1.0, max_poll_interval_s=1.0, exponential_backoff=False)

_log = structlog.get_logger(__name__)


async def take_over(backend: Backend) -> None:
    """Keep all leases that stand in the file; what cannot be taken over now is tried again while the daemon runs."""
    left = list(backend.timed.all())
    with anyio.move_on_after(WITHIN_S):
        left = await _taken(backend, left)
    if left:
        backend.tasks.start_soon(_try_again, backend, left)
    if backend.holdings:
        _log.info("timed.taken_over", leases=len(backend.holdings), message="the leases that are kept go on")
    backend.tasks.start_soon(_end_untold if backend.timed.names_all else _keep_unnamed, backend)


async def _taken(backend: Backend, leases: Iterable[Timed]) -> list[Timed]:
    """Take them over, and return those that could not be."""
    left = []
    for told in leases:
        pidfd = _pidfd_of(told.process) if told.ttl_s is None else -1
        if told.ttl_s is None and pidfd < 0:
            # Its process has died meanwhile. The guard sees out what it has left; without one its session ends.
            backend.timed.forget(told.id)
            continue
        try:
            await Holding(backend, _plan_of(told), _caller_of(told)).go_on(told, pidfd)
        except GpuLockError as trouble:
            _log.error("timed.not_taken_over", lease=told.id, message=trouble.message)
            left.append(told)
    return left


async def _try_again(backend: Backend, left: list[Timed]) -> None:
    """Those that nobody has ended meanwhile, until there are none."""
    while left:
        await anyio.sleep(RETRY_S)
        known = {told.id for told in backend.timed.all()} - backend.holdings.keys()
        left = await _taken(backend, [told for told in left if told.id in known])


async def _keep_unnamed(backend: Backend) -> None:
    """Keep on what a daemon was granted for processes, where the file does not name them all.

    An earlier version has written it since, or it cannot be read. Nobody knows then who was told of what, so nothing is
    given back.
    """
    while not backend.timed.names_all:
        with suppress(StoreUnavailable):
            seen = await backend.look(length=1)
            gpus = {record.gpu.key: record.gpu for record in seen.gpus}
            untold = [lease for lease in seen.leases if _is_untold(backend, lease) and not _is_claimed(backend, lease)]
            found = [_told_of(backend, lease, gpus) for lease in untold]
            backend.timed.complete(found)
            return await _try_again(backend, await _taken(backend, found))
        await anyio.sleep(RETRY_S)


async def _end_untold(backend: Backend) -> None:
    """Give back what a daemon was granted for a process and could not tell before it ended.

    Nobody knows of it, so nobody would, as long as that process lives. Who was to be told asks again soon.
    """
    ends_at = anyio.current_time() + UNTOLD_S
    before: dict[str, TicketRecord] | None = None
    while before is None or before:
        with suppress(StoreUnavailable):
            if before is None:
                leases = (await backend.look(length=1)).leases
                before = {lease.id: lease for lease in leases if _is_untold(backend, lease)}
            before = {id: lease for id, lease in before.items() if not _is_claimed(backend, lease)}
            for lease in before.values():
                # Its time must not end meanwhile: that would be the end of its process too.
                pair = lease.id, lease.token
                await backend.ask(verbs.keepalive(backend.keys, session=lease.session, echo=0, leases=[pair]))
            while before and anyio.current_time() >= ends_at:
                lease = next(iter(before.values()))
                await give_back(backend, lease)
                _log.info("timed.untold", lease=lease.id, message="a lease that nobody was told of is given back")
                del before[lease.id]
        await anyio.sleep(RETRY_S)


def _is_untold(backend: Backend, lease: TicketRecord) -> bool:
    noted = {told.id for told in backend.timed.all()} | backend.holdings.keys()
    has_process = lease.process is not None and lease.process.pid > 0  # without one it ends with its session
    return has_process and lease.id not in noted and lease.state == "held" and is_kept(backend, lease)


def _is_claimed(backend: Backend, lease: TicketRecord) -> bool:
    """Whether its request has been asked again."""
    process = lease.process
    is_asked = process is not None and (process.pid, process.started_ticks) in backend.asking
    return is_asked or lease.id in backend.holdings


def _pidfd_of(process: Process) -> int:
    """Return a pidfd of that very process, -1 if it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return -1
    # Read after it is opened: if the number is another process's by now, one of both is not what was noted.
    if started_ticks(process.pid) != process.started_ticks:
        os.close(pidfd)
        return -1
    return pidfd


def _told_of(backend: Backend, lease: TicketRecord, gpus: Mapping[str, Gpu]) -> Timed:
    """What the file would say of a lease that is kept for a process."""
    assert lease.process is not None
    try:
        uid = os.stat(f"/proc/{lease.process.pid}").st_uid
    except OSError:  # it has just ended
        uid = -1
    return Timed(
        id=lease.id,
        token=lease.token,
        session=lease.session,
        of="",
        gpus=tuple(gpus[key] for key in lease.gpus if key in gpus),
        wants=lease.wants,
        priority=lease.priority,
        job=lease.job,
        lock_timeout_ms=round(backend.settings.gpu_lock.lock_timeout * 1000),
        process=lease.process,
        uid=uid,
        ttl_s=None,
        until_s=0.0,
        granted_at=boottime_s() - lease.held_ms / 1000,
        stamp_ms=None,
    )


def _plan_of(told: Timed) -> Plan:
    return Plan(
        ask=Ask(Wants.parse(told.wants), told.priority, told.job, told.lock_timeout_ms),
        patience=_PATIENCE,
        process=told.process,
        session=None,
        ticket=told.id,
        pid=told.process.pid if told.ttl_s is None else None,
        ttl_s=told.ttl_s,
    )


def _caller_of(told: Timed) -> Caller:
    """Who asked, as far as it still counts: the user, not the process."""
    return Caller(peer=Peer(pid=0, uid=told.uid) if told.uid >= 0 else None, trusted=False)
