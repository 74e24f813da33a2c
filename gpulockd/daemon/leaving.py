"""The daemon goes: whoever still holds is named, with what that means for them."""

from __future__ import annotations

from typing import Protocol, TypeVar

import anyio
import structlog

from gpulockd.clock import boottime_s
from gpulockd.daemon.callers import Callers
from gpulockd.daemon.current import Current
from gpulockd.errors import GpuLockError
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.verbs import Call
from gpulockd.model import TicketRecord
from gpulockd.units import format_duration

LONGEST_S = 2.0
MOST_NAMED = 8

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Asks(Protocol):
    """Sends a script on the daemon's own connection."""

    async def __call__(self, call: Call[T]) -> T: ...


async def say_who_holds(ask: Asks, keys: PoolKeys, callers: Callers, current: Current, *, stops: bool) -> None:
    """Log who holds in this pool while the daemon stops; within two seconds, whatever the store does.

    :param stops: the private store is stopped too, so that what they hold ends with their belief in it
    """
    began_s = boottime_s()
    try:
        with anyio.move_on_after(LONGEST_S):
            answer = await ask(verbs.snapshot(keys, length=1))
            if not isinstance(answer, a.Pictured):
                return
            holders = [lease for lease in answer.snapshot.leases if lease.state == "held"]
            if not holders:
                return
            believed_s = (answer.clock.ttl_ms - answer.clock.step_ms) / 1000 - current.settings.session.margin
            names = [_name(lease, callers) for lease in holders[:MOST_NAMED]]
            if len(holders) > MOST_NAMED:
                names.append(f"and {len(holders) - MOST_NAMED} more")
            told = "; ".join(names)
            if stops:
                _log.warning(
                    "daemon.stops_under_holders",
                    holders=len(holders),
                    message=f"the store stops under {len(holders)} holder(s), who lose their GPUs within "
                    f"{format_duration(believed_s)} unless the daemon is started again before: {told}",
                )
            else:
                _log.info("daemon.holders_go_on", holders=len(holders), message=f"holders go on: {told}")
    except GpuLockError as away:
        waited = format_duration(boottime_s() - began_s)
        _log.warning("daemon.holders_unknown", message=f"who holds could not be read ({waited}): {away.message}")


def _name(lease: TicketRecord, callers: Callers) -> str:
    known = callers.process(lease.session)
    own = lease.process.pid if lease.process is not None else 0  # none: held for a time
    pid = f", pid {known.pid}" if known is not None else f", its own pid {own}" if own else ""
    task = lease.job.task or "somebody"
    return f"{', '.join(lease.gpus)}: {task}{pid}, since {format_duration(lease.held_ms / 1000)}"
