"""Carries out what was judged about leases, and keeps the books of it: levels acted on, recoveries under way, counts.

Its law: it signals no process. A lease that it takes ends *lost* in the ledger; whoever watches runs sees to the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import anyio
import msgspec
import structlog

from gpulockd.clock import wall_ms
from gpulockd.daemon import judging
from gpulockd.daemon.heartbeats import task_id_of
from gpulockd.daemon.judging import (
    Bury,
    GiveUp,
    Instruction,
    Mark,
    Miss,
    Press,
    Reading,
    Readings,
    Recovery,
    Remind,
    Revoke,
)
from gpulockd.daemon.levels import RANK
from gpulockd.errors import GpuLockError, StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.limits_verbs import Marked, Reached, reach
from gpulockd.ledger.verbs import Call
from gpulockd.model import Snapshot, TicketRecord
from gpulockd.units import format_duration

LOGGER = "gpu_lock_monitor"
"""Where users of the source documents look for these lines, some of which keep their words."""

T = TypeVar("T")

_log = structlog.get_logger(LOGGER)


class Asks(Protocol):
    """Sends a script on the daemon's own connection."""

    async def __call__(self, call: Call[T]) -> T: ...


PressRun = Callable[[str, tuple[str, ...]], Awaitable[None]]
"""Signals once more what is left, of the run of a lease that has ended, on its gpus."""


async def nobody(lease: str, gpus: tuple[str, ...]) -> None:
    """For a host whose runs nobody watches."""


class Counts(msgspec.Struct, kw_only=True):
    """What was done since the daemon's start. `last_recovery_ms` is wall clock."""

    warning: int = 0
    soft: int = 0
    hard: int = 0
    silent: int = 0
    recovered: int = 0
    failed: int = 0
    buried: int = 0
    last_recovery_ms: int | None = None


class Obeying:
    """`levels` (lease id -> the highest level acted on) and `recoveries` are of leases that matter now.

    :param session: the id of the daemon's session at this moment
    :param press: asks whoever watches runs to try again
    """

    def __init__(self, keys: PoolKeys, ask: Asks, session: Callable[[], str], press: PressRun = nobody) -> None:
        self.counts = Counts()
        self.levels: dict[str, str] = {}
        self.recoveries: dict[str, Recovery] = {}
        self._keys = keys
        self._ask = ask
        self._session = session
        self._press_run = press
        self._leases: dict[str, TicketRecord] = {}

    def __repr__(self) -> str:
        return f"<Obeying {self._keys.pool} {len(self.recoveries)} recoveries>"

    def readings(self, runs: Mapping[str, Reading]) -> Readings:
        """What the ledger does not say."""
        return Readings(runs=runs, recoveries=self.recoveries, levels=self.levels)

    def see(self, snapshot: Snapshot) -> None:
        """Forget what has ended, and close the recoveries that are over."""
        self._leases = {lease.id: lease for lease in snapshot.leases}
        known = {id: level for id, level in self.levels.items() if id in self._leases}
        for lease in snapshot.leases:
            if RANK[lease.level] > RANK[known.get(lease.id, "")]:
                known[lease.id] = lease.level
        self.levels = known
        for recovery in list(self.recoveries.values()):
            if judging.is_over(recovery, snapshot):
                del self.recoveries[recovery.lease]
                self.counts.recovered += 1
                self.counts.last_recovery_ms = wall_ms()
                message = f"{_listed(recovery.gpus)} can be had again after {_counted(recovery.tries)}"
                _log.info("recovery.done", logger=LOGGER, lease=recovery.lease, why=recovery.why, message=message)

    async def obey(self, order: Instruction) -> None:
        """Do it.

        :raises StoreUnavailable: if the store does not answer; what was tried is counted
        """
        match order:
            case Mark():
                await self._mark(order)
            case Remind():
                await self._reach(order, "operator", stop=True)
            case Miss():
                await self._miss(order)
            case Revoke():
                await self._revoke(order)
            case Bury():
                await self._bury(order)
            case Press():
                await self._press(order)
            case GiveUp():
                await self._give_up(order)

    async def _reach(
        self, order: Mark | Remind | Miss | Revoke, level: Reached, *, stop: bool = False, manual: bool = False
    ) -> str:
        """Mark the lease; return how the ledger took it, "" if there is no such lease any more."""
        call = reach(
            self._keys,
            id=order.lease,
            token=order.token,
            level=level,
            after_ms=order.after_ms,
            stop=stop,
            manual=manual,
        )
        answer = await self._ask(call)
        return answer.how if isinstance(answer, Marked) else ""

    async def _mark(self, order: Mark) -> None:
        if await self._reach(order, order.level, stop=order.stop) != "reached":
            return
        self.levels[order.lease] = order.level
        setattr(self.counts, order.level, getattr(self.counts, order.level) + 1)
        whose, held = self._whose(order), format_duration(order.after_ms / 1000)
        message = {
            "warning": f"{whose} has held its GPU for {held}",
            "soft": f"GPU锁软超时: 锁持有者 {whose} 持有锁时间过长",
            "hard": f"{whose} has held its GPU for {held}, longer than its hard limit; auto_recovery is off",
        }[order.level]
        _log.warning(f"limit.{order.level}", logger=LOGGER, lease=order.lease, asked=order.stop, message=message)

    async def _miss(self, order: Miss) -> None:
        if await self._reach(order, "silent", manual=order.manual) == "reached":
            self.counts.silent += 1
            message = f"nothing was heard of {self._whose(order)} for {format_duration(order.after_ms / 1000)}"
            _log.warning("heartbeat.missed", logger=LOGGER, lease=order.lease, message=message)

    async def _revoke(self, order: Revoke) -> None:
        # The task may have spoken since the picture was taken.
        if order.why == "silent" and await self._reach(order, "silent", manual=order.manual) == "early":
            return
        recovery = self._tried(order)
        self.counts.hard += order.why == "hard_timeout" and recovery.tries == 1
        try:
            call = verbs.end(self._keys, session="", id=order.lease, token=order.token, reason=order.why)
            answer = await self._ask(call)
        except GpuLockError as failed:
            message = f"{_listed(order.gpus)} could not be taken in {_counted(recovery.tries)}: {failed.message}"
            _log.error("recovery.failed", logger=LOGGER, lease=order.lease, message=message)
            if isinstance(failed, StoreUnavailable):
                raise
            return
        if not isinstance(answer, a.Ended):
            del self.recoveries[order.lease]  # it had ended by itself
            return
        message = f"took {_listed(order.gpus)} from {self._whose(order)}: {order.why}"
        _log.warning("recovery.revoked", logger=LOGGER, lease=order.lease, why=order.why, message=message)
        for key in order.gpus:
            _log.info("recovery.released", logger=LOGGER, gpu=key, message=f"成功强制释放GPU锁 {key}")

    def _tried(self, order: Revoke) -> Recovery:
        """Write down that a lease is being taken, before it is."""
        before = self.recoveries.get(order.lease)
        self.recoveries[order.lease] = Recovery(
            lease=order.lease,
            token=order.token,
            gpus=order.gpus,
            why=order.why,
            tries=before.tries + 1 if before else 1,
            tried_at_s=anyio.current_time(),
            given_up=before is not None and before.given_up,
        )
        return self.recoveries[order.lease]

    async def _bury(self, order: Bury) -> None:
        call = verbs.end(self._keys, session="", id=order.session, token=None, reason="died", what="session")
        answer = await self._ask(call)
        if isinstance(answer, a.Ended):
            self.counts.buried += 1
            message = f"the process of {self._whose(order)} is gone"
            _log.warning("heartbeat.dead", logger=LOGGER, lease=order.lease, message=message)

    async def _press(self, order: Press) -> None:
        recovery = self.recoveries[order.lease]
        tries = recovery.tries + 1
        self.recoveries[order.lease] = msgspec.structs.replace(recovery, tries=tries, tried_at_s=anyio.current_time())
        message = f"{_listed(order.gpus)} has not been left yet: try {tries}"
        _log.warning("recovery.again", logger=LOGGER, lease=order.lease, message=message)
        await self._press_run(order.lease, order.gpus)

    async def _give_up(self, order: GiveUp) -> None:
        recovery = self.recoveries[order.lease]
        reason = f"not recovered in {_counted(recovery.tries)}"
        for key in order.gpus:
            call = verbs.report(self._keys, session=self._session(), gpu=key, state="quarantined", reason=reason)
            await self._ask(call)
        self.recoveries[order.lease] = msgspec.structs.replace(recovery, given_up=True, tried_at_s=anyio.current_time())
        self.counts.failed += 1
        message = f"{_listed(order.gpus)} was {reason} ({order.why}); see what is on it"
        _log.error("recovery.given_up", logger=LOGGER, lease=order.lease, message=message)

    def _whose(self, order: Instruction) -> str:
        lease = self._leases.get(order.lease)
        return task_id_of(lease) if lease is not None else order.lease


def _listed(gpus: tuple[str, ...]) -> str:
    return ", ".join(gpus)


def _counted(tries: int) -> str:
    return "one try" if tries == 1 else f"{tries} tries"
