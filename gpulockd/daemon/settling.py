"""Between fence and ledger: who has died is ended there, whose lease has ended there is seen out here.

A lease that was lost keeps its gpus until nothing of its run is left on them: its holder is told first, then asked
(SIGTERM), then killed; only then the gpu is reported settled. Everything here is found by comparing the ledger with the
fence, so whatever was missed while the store or the daemon was away is found at the next look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from gpulockd.daemon.fence import Lease, Party
from gpulockd.daemon.guarding import Guard
from gpulockd.errors import StoreUnavailable
from gpulockd.hardware.processes.ending import Ended, end_run
from gpulockd.hardware.processes.identity import Process
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.verbs import Call
from gpulockd.model import Snapshot, TicketRecord
from gpulockd.settings import Settings

SOON_S = 0.02
"""How long changes gather before the ledger is compared with the fence, where nobody waits for it (in seconds)."""

RECHECK_S = 0.25
"""How soon something that was not over is looked at again (in seconds)."""

LEAVE_S = 1.0
"""How long a holder that was told of its loss has to leave, before its run is asked by SIGTERM (in seconds)."""

RETRY_S = 0.2
LOST_BY = frozenset({"expired", "revoked", "died", "overruled"})

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Asks(Protocol):
    """Sends a script on the daemon's own connection."""

    async def __call__(self, call: Call[T]) -> T: ...


Occupants = Callable[[str, frozenset[Process]], Awaitable[str]]
"""What is on a gpu (its key) of a run's processes, as a text for people; empty if nothing is."""


async def nothing_seen(gpu: str, run: frozenset[Process]) -> str:
    """For cards that cannot tell."""
    return ""


class Settling:
    """Sees lost leases out, and tells the ledger what is over."""

    def __init__(
        self, guard: Guard, ask: Asks, keys: PoolKeys, settings: Settings, occupants: Occupants = nothing_seen
    ) -> None:
        self.guard = guard
        self._ask = ask
        self._keys = keys
        self._settings = settings
        self._occupants = occupants
        self._news = anyio.Event()
        self._leaving: set[str] = set()
        self._must_look = True
        self.adopts = settings.gpus.guard
        """Whether leases may stand in the ledger that were never let in: after the pool has got this guard."""
        self._vouched_at = 0.0
        self._tasks: anyio.abc.TaskGroup | None = None

    def wake(self, *, look: bool = False) -> None:
        """Something has changed; `look`: in the ledger."""
        self._must_look = self._must_look or look
        self._news.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Compare and act until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self.guard.runs.follow)
            task_status.started()
            while True:
                self._news = anyio.Event()
                pause_s = RETRY_S
                try:
                    pause_s = await self._round()
                except StoreUnavailable as away:
                    _log.debug("guard.store_away", message=away.message)
                with anyio.move_on_after(pause_s):
                    await self._news.wait()

    async def _round(self) -> float:
        """One comparison. Returns how long nothing need be done (in seconds)."""
        await self._end_dead_sessions()
        for lease in list(self.guard.fence.leases.values()):
            if not lease.inside:
                self._see_out(lease)
        pending = bool(self.guard.fresh or self.guard.waiting or self._leaving)
        if self._must_look or pending:
            self._must_look = False
            await self._compare()
        if self.guard.waiting:
            self.guard.let_in()
        return min(await self._vouch(), RECHECK_S if self._leaving or self.guard.waiting else 60.0)

    async def _end_dead_sessions(self) -> None:
        for session in list(self.guard.dead_sessions):
            await self._ask(verbs.end(self._keys, session="", id=session, token=None, reason="died", what="session"))
            self.guard.dead_sessions.discard(session)
            self._must_look = True

    async def _vouch(self) -> float:
        """Keep the sessions of living processes that are inside; their own keepalives may stall with their process."""
        every_s = self._settings.session.keepalive
        due_s = self._vouched_at + every_s - anyio.current_time()
        if due_s > 0:
            return due_s
        self._vouched_at = anyio.current_time()
        for session in self.guard.sessions_inside():
            await self._ask(verbs.keepalive(self._keys, session=session, echo=0, leases=[]))
        return every_s

    # The comparison.

    async def _compare(self) -> None:
        asked_for = dict(self.guard.fence.leases)
        self.guard.fresh.clear()
        answer = await self._ask(verbs.snapshot(self._keys, length=1))
        if not isinstance(answer, a.Pictured) or answer.snapshot.frozen_ms > 0:
            return
        snapshot = answer.snapshot
        stands = {ticket.id: ticket for ticket in snapshot.leases}
        for id, lease in asked_for.items():
            ticket = stands.get(id)
            if (ticket is None or ticket.token != lease.token) and self.guard.fence.leases.get(id) is lease:
                await self._ended(lease)
        if self.adopts:
            self.adopts = False
            self._adopt(snapshot)
        await self._settle(snapshot)

    def _adopt(self, snapshot: Snapshot) -> None:
        """Take what stood before the guard came: it is in, though nobody let it in."""
        members: dict[str, list[Party]] = {}
        for ticket in snapshot.leases:
            if ticket.of:
                members.setdefault(ticket.of, []).append(party_of(ticket))
        for ticket in snapshot.leases:
            if ticket.state == "held" and ticket.id not in {lease.id for lease in self.guard.waiting}:
                self.guard.adopt_ledgers(lease_of(ticket, members.get(ticket.id, [])))

    async def _ended(self, lease: Lease) -> None:
        """The ledger does not have this lease any more."""
        if lease.lost:
            return self._see_out(lease)
        answer = await self._ask(verbs.confirm(self._keys, session="", id=lease.id, token=0))
        reason = answer.reason if isinstance(answer, a.Gone) else "overruled"
        if self.guard.fence.leases.get(lease.id) is not lease:
            return
        if reason not in LOST_BY and reason != "unknown":
            # Released by its holder, whose `leave` was not heard.
            self.guard.over(lease.id)
            return
        if reason == "unknown":
            _log.warning("guard.lease_unknown", lease=lease.id, message="a lease is in that the ledger does not know")
        self.guard.lost(lease, reason)
        self._see_out(lease)

    async def _settle(self, snapshot: Snapshot) -> None:
        """Report the gpus settled on which nothing of a lost lease is left."""
        for record in snapshot.gpus:
            if record.state not in ("settling", "quarantined"):
                continue
            standing = {ticket.id for ticket in snapshot.leases}
            key = record.gpu.key
            if any(lease.lost or not lease.inside or lease.id not in standing for lease in self.guard.fence.on(key)):
                continue
            if await self._occupants(key, frozenset()):
                continue
            await self._report(key, "settled", "nothing of the earlier run is left")

    async def _report(self, gpu: str, state: str, reason: str) -> None:
        await self._ask(verbs.report(self._keys, session="", gpu=gpu, state=state, reason=reason))

    # Seeing out.

    def _see_out(self, lease: Lease) -> None:
        if lease.id not in self._leaving and self._tasks is not None:
            self._leaving.add(lease.id)
            self._tasks.start_soon(self._seen_out, lease)

    async def _seen_out(self, lease: Lease) -> None:
        """End what is left of a lease that was lost; then it is over."""
        try:
            if lease.inside:
                await self._wait_for_leave(lease)
            if self._stands(lease) and await self._run_left(lease):
                await self._end_run(lease)
            while self._stands(lease) and (lease.inside or await self._run_left(lease) or await self._on_cards(lease)):
                await self._news_within(RECHECK_S)
            self.guard.over(lease.id)
        finally:
            self._leaving.discard(lease.id)
            self.wake(look=True)

    def _stands(self, lease: Lease) -> bool:
        return self.guard.fence.leases.get(lease.id) is lease

    async def _wait_for_leave(self, lease: Lease) -> None:
        with anyio.move_on_after(LEAVE_S):
            while self._stands(lease) and lease.inside:
                await self._news_within(LEAVE_S)

    async def _news_within(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._news.wait()
            await anyio.lowlevel.checkpoint()

    async def _run_left(self, lease: Lease) -> frozenset[Process]:
        """The living processes of a lost lease's run, of whom the kernel has said that they are."""
        if not self._stands(lease):
            return frozenset()
        await self.guard.runs.scan()
        return self.guard.runs.members(lease.id)

    async def _on_cards(self, lease: Lease) -> str:
        run = self.guard.runs.members(lease.id)
        words = [await self._occupants(gpu, run) for gpu in lease.gpus]
        return "; ".join(word for word in words if word)

    async def _end_run(self, lease: Lease) -> None:
        if not self._settings.gpu_lock_monitor.auto_recovery or lease.id in self.guard.unproven:
            _log.warning("guard.run_goes_on", lease=lease.id, message="a lost lease's run goes on; it is not ended")
            return
        others = self.guard.runs.holds_another(lease.id)
        for process in others:
            _log.warning("guard.loses_another", lease=lease.id, pid=process.pid, message="it holds another lease too")

        async def members() -> frozenset[Process]:
            return await self._run_left(lease)

        ended = await end_run(members, self._settings.settle.grace, others)
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


def party_of(ticket: TicketRecord) -> Party:
    """The party that the ledger names for a lease; its process is what the client has said of itself."""
    process = ticket.process
    return Party(
        ticket=ticket.id,
        session=ticket.session,
        pid=process.pid if process else 0,
        started=process.started_ticks if process else 0,
    )


def lease_of(ticket: TicketRecord, members: list[Party]) -> Lease:
    """The lease that the ledger names, with those who have joined it."""
    wants = ticket.wants.split(":", 1)[0]
    return Lease(
        id=ticket.id,
        token=ticket.token,
        gpus=ticket.gpus,
        exclusive=wants == "exclusive",
        parties=[party_of(ticket), *members],
    )
