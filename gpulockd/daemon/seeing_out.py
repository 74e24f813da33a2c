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
from gpulockd.hardware.processes.ending import Ended, end_run
from gpulockd.hardware.processes.following import CardPids, no_cards
from gpulockd.hardware.processes.identity import Process, ticks_of
from gpulockd.hardware.processes.kin import descends

RECHECK_S = 0.25
"""How soon something that was not over is looked at again (in seconds)."""

LOOK_S = 1.0
"""How often the children of held runs are looked for (in seconds)."""

YOUNG_S, YOUNG_FOR_S = 0.25, 10.0
"""The same while a lease is younger than this: most children are born soon after a lease has begun."""

SCAN_S = 2.0
"""How often all processes of the host are looked through (in seconds)."""

LOOK_SHARE, SCAN_SHARE = 100, 200
"""A pause is at least so many times as long as the CPU time of what comes before it. A busy host makes a look late, and
must not make the next one rare."""

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
    """Ends what is left of lost leases, and looks for the processes of those that stand."""

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
        self.occupants = occupants
        self._current = current
        self._report = report
        self._card_pids = card_pids
        self._news = anyio.Event()
        self._occupied = anyio.Event()
        self._pressed: set[str] = set()

    def press(self, lease: Lease) -> None:
        """Signal once more what is left of a lost lease's run."""
        self._pressed.add(lease.id)
        self.wake()

    def wake(self) -> None:
        """Somebody has come, left or died."""
        if self.guard.fence.leases:
            self._occupied.set()
        self._news.set()
        self._news = anyio.Event()

    async def follow(self) -> None:
        """Look for new children of all who are in, so that they are known when their parent dies, until cancelled."""
        scan_s = 0.0
        while True:
            if not self.guard.fence.leases:
                self._occupied = anyio.Event()
                await self._occupied.wait()
            now_s = anyio.current_time()
            if now_s >= scan_s:
                scan_s = now_s + max(SCAN_S, SCAN_SHARE * await self.scan())
            looked_s = await self._found(self.guard.runs.look())
            youngest_ms = max((lease.began_ms for lease in self.guard.fence.leases.values()), default=0)
            pause_s = YOUNG_S if boottime_s() - youngest_ms / 1000 < YOUNG_FOR_S else LOOK_S
            await anyio.sleep(max(pause_s, LOOK_SHARE * looked_s))

    async def scan(self) -> float:
        """Look for new members of the runs, and record them; return the CPU time that it took (in seconds).

        What cannot be looked at now is looked at again: a death is told by the kernel, never by an absence here.
        """
        return await self._found(self.guard.runs.scan(self._card_pids))

    async def _found(self, looking: Awaitable[float]) -> float:
        try:
            took_s = await looking
        except (TimeoutError, OSError) as trouble:
            _log.warning("guard.scan_failed", message=f"the processes could not be listed: {trouble}")
            return 0.0
        self._note_members()
        return took_s

    def _note_members(self) -> None:
        """Record the processes that were found in the runs, for a daemon that comes after this one."""
        for lease in self.guard.fence.leases.values():
            members = sorted((process.pid, process.started_ticks) for process in self.guard.runs.members(lease.id))
            if not set(members) <= set(lease.members):
                lease.members = members
                self.guard.record(lease)

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
        with anyio.move_on_after(seconds):
            await self._news.wait()

    async def _run_left(self, lease: Lease) -> frozenset[Process]:
        """The living processes of a lost lease's run, of whom the kernel has said that they are."""
        if not self._stands(lease):
            return frozenset()
        if lease.withdrawn:
            return frozenset()
        await self.scan()
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
