"""A lease that was lost is seen out: its holder is told, asked, killed; until nothing of its run is left on its gpus.

Only processes of which the kernel has said that they are of this run are ever signalled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import structlog

from gpulockd.clock import boottime_s
from gpulockd.daemon.current import Current
from gpulockd.daemon.fence import Lease
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.lookout import Lookout
from gpulockd.hardware.processes.ending import Ended, end_run
from gpulockd.hardware.processes.following import CardPids, no_cards
from gpulockd.hardware.processes.identity import Process, ticks_of
from gpulockd.hardware.processes.kin import descends

RECHECK_S = 0.25
"""How soon something that was not over is looked at again (in seconds)."""

LEAVE_SHARE = 0.5
"""How much of the grace a holder that was told of its loss has to leave, before its run is asked by SIGTERM."""

_log = structlog.get_logger(__name__)

Occupants = Callable[[str, frozenset[Process]], Awaitable[str]]
"""What is on a gpu (its key) of a run's processes, as a text for people; empty if nothing is."""

Report = Callable[[str, str, str], Awaitable[None]]
"""Tells the ledger how a gpu (its key) is, and why."""


async def nothing_seen(gpu: str, run: frozenset[Process]) -> str:
    """For cards that cannot tell."""
    return ""


class SeeingOut:
    """Ends what is left of lost leases. `lookout` looks for the processes of those that stand."""

    def __init__(
        self,
        guard: Guard,
        current: Current,
        report: Report,
        occupants: Occupants = nothing_seen,
        card_pids: CardPids = no_cards,
    ) -> None:
        """:param occupants: tells who of a run is on a gpu
        :param card_pids: the pids that the cards of a lease show
        """
        self.guard = guard
        self.lookout = Lookout(guard, card_pids)
        self.occupants = occupants
        self._current = current
        self._report = report
        self._news = anyio.Event()
        self._waiting = 0
        self._pressed: set[str] = set()

    def press(self, lease: Lease) -> None:
        """Signal once more what is left of a lost lease's run."""
        self._pressed.add(lease.id)
        self.wake()

    def wake(self) -> None:
        """Somebody has come, left or died."""
        self.lookout.wake()
        if self._waiting:
            self._news.set()
            self._news = anyio.Event()

    async def see_out(self, lease: Lease) -> None:
        """Return when a lost lease is over."""
        if lease.inside:
            await self._wait_for_leave(lease)
        if self._stands(lease) and not lease.withdrawn and await self._run_left(lease):
            await self._end_run(lease)
        gone_at = boottime_s() + self._current.settings.session.ttl
        while self._stands(lease) and (lease.inside or await self._run_left(lease) or await self._on_cards(lease)):
            await self._news_within(RECHECK_S)
            if (
                lease.withdrawn
                and boottime_s() >= gone_at
                and not any(self.guard.callers.hear(party.session) for party in lease.inside)
            ):
                break  # nobody speaks for it, and what its process may have believed of it is over
            if lease.id in self._pressed:
                self._pressed.discard(lease.id)
                await self._end_run(lease)
        self.guard.over(lease)

    def _stands(self, lease: Lease) -> bool:
        return self.guard.fence.leases.get(lease.id) is lease

    async def _wait_for_leave(self, lease: Lease) -> None:
        leave_s = LEAVE_SHARE * self._current.settings.settle.grace
        with anyio.move_on_after(leave_s):
            while self._stands(lease) and lease.inside:
                await self._news_within(leave_s)

    async def _news_within(self, seconds: float) -> None:
        self._waiting += 1
        try:
            with anyio.move_on_after(seconds):
                await self._news.wait()
        finally:
            self._waiting -= 1

    async def _run_left(self, lease: Lease) -> frozenset[Process]:
        """The living processes of a lost lease's run, of whom the kernel has said that they are."""
        if not self._stands(lease):
            return frozenset()
        if lease.withdrawn:
            return frozenset()
        await self.lookout.scan()
        left = {Process(party.pid, party.started) for party in lease.parties if party.state == "left"}
        members = self.guard.runs.members(lease.id) - left
        if not left:
            return members
        # A holder that has left goes on with its own work: only what was born while it held is of this run.
        began_ticks = ticks_of(lease.began_ms)
        born = {process for process in members if process.started_ticks >= began_ticks}
        if lease.lost:
            return frozenset(born)
        # It gave the lease back in order: what it has started since is its own affair.
        return frozenset(process for process in born if not any(descends(process, holder) for holder in left))

    async def _on_cards(self, lease: Lease) -> str:
        run = self.guard.runs.members(lease.id)
        words = [await self.occupants(gpu, run) for gpu in lease.gpus]
        return "; ".join(word for word in words if word)

    async def _end_run(self, lease: Lease) -> None:
        if not self._current.settings.gpu_lock_monitor.auto_recovery or lease.id in self.guard.unproven:
            _log.warning("guard.run_goes_on", lease=lease.id, message="a lost lease's run goes on; it is not ended")
            return
        others = self.guard.runs.holds_another(lease.id)
        for process in others:
            _log.warning("guard.loses_another", lease=lease.id, pid=process.pid, message="it holds another lease too")

        async def members() -> frozenset[Process]:
            return await self._run_left(lease)

        ended = await end_run(members, self._current.settings.settle.grace, others)
        self._log_end(lease, ended)
        if ended.left and self._stands(lease):
            await self._quarantine(lease, ended)

    def _log_end(self, lease: Lease, ended: Ended) -> None:
        _log.info(
            "guard.run_ended",
            lease=lease.id,
            asked=len(ended.asked),
            killed=len(ended.killed),
            left=len(ended.left),
            message=f"the run of a lost lease ({lease.lost or 'died'}) was ended",
        )

    async def _quarantine(self, lease: Lease, ended: Ended) -> None:
        names = ", ".join(f"pid {process.pid}" for process in sorted(ended.left))
        why = "may not be signalled" if ended.forbidden else "cannot be killed"
        for gpu in lease.gpus:
            _log.error("guard.gpu_quarantined", gpu=gpu, message=f"{gpu}: {names} {why}")
            await self._report(gpu, "quarantined", f"{names} {why}")
