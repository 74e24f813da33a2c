"""A daemon that begins takes over the leases for a time that the one before it had promised."""

from __future__ import annotations

import anyio
import structlog

from gpulockd.client.table import Ask
from gpulockd.client.waiting import Patience
from gpulockd.errors import GpuLockError
from gpulockd.model import Wants
from gpulockd.web.auth import Caller, Peer
from gpulockd.web.backend import Backend
from gpulockd.web.holding import Holding
from gpulockd.web.timed import Timed
from gpulockd.web.wanting import Plan

WITHIN_S = 20.0
"""How long a daemon that begins may be busy with this, before it says READY (in seconds)."""

_PATIENCE = Patience(max_wait_s=2.0, poll_interval_s=1.0, max_poll_interval_s=1.0, exponential_backoff=False)

_log = structlog.get_logger(__name__)


async def take_over(backend: Backend) -> None:
    """Hold all leases for a time that stand in the file. What cannot be taken over now ends in the ledger with its
    time."""
    with anyio.move_on_after(WITHIN_S):
        for told in backend.timed.all():
            try:
                await Holding(backend, _plan_of(told), _caller_of(told)).go_on(told)
            except GpuLockError as trouble:
                _log.error("timed.not_taken_over", lease=told.id, message=trouble.message)
    if backend.holdings:
        _log.info("timed.taken_over", leases=len(backend.holdings), message="leases for a time go on")


def _plan_of(told: Timed) -> Plan:
    return Plan(
        ask=Ask(Wants.parse(told.wants), told.priority, told.job, told.lock_timeout_ms),
        patience=_PATIENCE,
        process=told.process,
        session=None,
        ticket=None,
        pid=None,
        ttl_s=told.ttl_s,
    )


def _caller_of(told: Timed) -> Caller:
    """Who asked, as far as it still counts: the user, not the process."""
    return Caller(peer=Peer(pid=0, uid=told.uid) if told.uid >= 0 else None, trusted=False)
