"""Between fence and ledger: who has died is ended there, whose lease has ended there is seen out here.

A lease that was lost keeps its gpus until nothing of its run is left on them: its holder is told first, then asked
(SIGTERM), then killed; only then the gpu is reported settled. Everything here is found by comparing the ledger with the
fence, so whatever was missed while the store or the daemon was away is found at the next look.
"""

from __future__ import annotations

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from gpulockd.clock import boottime_s
from gpulockd.daemon.current import Current
from gpulockd.daemon.fence import Lease, Party
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.ledgers import is_exclusive, is_grant_of, lease_of, party_of
from gpulockd.daemon.obeying import Asks
from gpulockd.daemon.pulse import Pulse
from gpulockd.daemon.seeing_out import RECHECK_S, Occupants, SeeingOut, nothing_seen
from gpulockd.errors import StoreUnavailable
from gpulockd.hardware.processes.following import CardPids, no_cards
from gpulockd.hardware.processes.table import Memories
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.model import Snapshot, TicketRecord

GATHER_S = 0.2
"""How long changes gather before the ledger is compared with the fence, where nobody waits for it (in seconds)."""

JUST_AFTER_S = 0.02

UNHEARD_S = 1.0
"""How long after its `leave` a lease may stand in the ledger before it is released there (in seconds)."""

LONGEST_PAUSE_S = 30.0
RETRY_S = 0.2
LOOKED_AT = frozenset(
    {"lock_expired", "lock_revoked", "gpu_settling", "gpu_quarantined", "session_lost", "wait_abandoned", "broken"}
)
LOST_BY = frozenset(
    {"expired", "left", "revoked", "died", "overruled", "gpu_lost", "operator", "hard_timeout", "silent"}
)

_log = structlog.get_logger(__name__)


class Settling:
    """Sees lost leases out, and tells the ledger what is over."""

    def __init__(
        self,
        guard: Guard,
        ask: Asks,
        keys: PoolKeys,
        current: Current,
        occupants: Occupants = nothing_seen,
        card_pids: CardPids = no_cards,
    ) -> None:
        """:param occupants: tells who of a run is on a gpu
        :param card_pids: the pids that the cards of a lease show
        """
        self.guard = guard
        self._ask = ask
        self._keys = keys
        self._current = current
        self.out = SeeingOut(guard, current, self._report, occupants, card_pids)
        self._memories = Memories()
        self._news = anyio.Event()
        self._gathers = False
        self._leaving: set[tuple[str, int]] = set()
        self._must_look = True
        self.adopts = current.settings.gpus.guard
        """Whether leases may stand in the ledger that were never let in: after the pool has got this guard."""
        self._vouched_at = 0.0
        self._tasks: anyio.abc.TaskGroup | None = None

    def wake(self, *, look: bool = False) -> None:
        """Something has changed; `look`: in the ledger."""
        self._must_look = self._must_look or look
        if not self._gathers or self._is_urgent():
            self._news.set()
        self.out.wake()

    def adopt_again(self) -> None:
        """The pool has got this guard anew: meanwhile somebody may have begun without it."""
        self.adopts = self._current.settings.gpus.guard
        self.wake(look=True)

    async def press(self, lease: str, gpus: tuple[str, ...]) -> None:
        """Try again to end what is left of a lost lease's run."""
        found = self.guard.fence.leases.get(lease)
        if found is not None and (found.lost or not found.inside):
            self.out.press(found)
            self._see_out(found)

    def hear(self, kind: str) -> None:
        """Something has happened in the pool."""
        if kind in LOOKED_AT:
            self.wake(look=True)

    async def run(
        self, *, pulse: Pulse | None = None, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Compare and act until cancelled.

        :param pulse: beaten after each comparison, for the watchdog
        """
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self.out.lookout.follow)
            task_status.started()
            while True:
                self._news = anyio.Event()
                pause_s = RETRY_S
                try:
                    pause_s = await self._round()
                except StoreUnavailable as away:
                    _log.debug("guard.store_away", message=away.message)
                if pulse is not None:
                    pulse.beat()
                with anyio.move_on_after(min(pause_s, LONGEST_PAUSE_S)):
                    await self._news.wait()
                await self._gather()

    async def _gather(self) -> None:
        """Let changes gather for a moment, unless somebody waits for what follows from them."""
        if self._is_urgent():
            return
        self._news, self._gathers = anyio.Event(), True
        with anyio.move_on_after(GATHER_S):
            await self._news.wait()
        self._gathers = False

    def _is_urgent(self) -> bool:
        guard = self.guard
        acting = guard.waiting or guard.dead_sessions or guard.joining.doubts or self._leaving or self._must_look
        return bool(acting) or any(not lease.inside for lease in guard.fence.leases.values())

    async def _judge_kin(self) -> None:
        """A process that wants to join must have been started with the lease in its environment."""
        joining = self.guard.joining
        doubts, joining.doubts = joining.doubts, []
        for doubt in doubts:
            process = doubt.caller.process
            leases = await self._memories.leases([process]) if process is not None else {}
            joining.decide(doubt, is_kin=process is not None and leases.get(process) == doubt.words.of)

    async def _round(self) -> float:
        """One comparison. Returns how long nothing need be done (in seconds)."""
        await self._judge_kin()
        await self._end_dead_sessions()
        for lease in list(self.guard.fence.leases.values()):
            if not lease.inside and not lease.fresh:
                self._see_out(lease)
        unheard = any(boottime_s() - left_at >= UNHEARD_S for _, left_at in self.guard.left.values())
        untold = self.guard.fence.fresh or self.guard.joining.unheard() or unheard
        pending = bool(untold or self.guard.waiting or self._leaving)
        frozen_s = await self._look() if self._must_look or pending else 0.0
        if self.guard.waiting:
            self.guard.let_in()
        soon_s = UNHEARD_S if self.guard.left else LONGEST_PAUSE_S
        if frozen_s > 0 or self._must_look:
            soon_s = min(soon_s, frozen_s or RETRY_S)
        return min(await self._vouch(), RECHECK_S if self._leaving or self.guard.waiting else soon_s)

    async def _look(self) -> float:
        """Compare, and remember that it must be done where it could not be. Returns how long the pool is frozen."""
        must_look, self._must_look = self._must_look, False
        try:
            frozen_s = await self._compare()
        except StoreUnavailable:
            self._must_look = True
            raise
        self._must_look = self._must_look or (must_look and frozen_s > 0)
        return frozen_s

    async def _end_dead_sessions(self) -> None:
        for session in list(self.guard.dead_sessions):
            await self._ask(verbs.end(self._keys, session="", id=session, token=None, reason="died", what="session"))
            self.guard.dead_sessions.discard(session)
            self._must_look = True

    async def _vouch(self) -> float:
        """Keep the sessions of living processes that are inside; their own keepalives may stall with their process."""
        every_s = self._current.settings.session.keepalive
        due_s = self._vouched_at + every_s - anyio.current_time()
        if due_s > 0:
            return due_s
        self._vouched_at = anyio.current_time()
        for session in self.guard.fence.sessions_inside(self.guard.callers.hear):
            await self._ask(verbs.keepalive(self._keys, session=session, echo=0, leases=[]))
        return every_s

    async def _compare(self) -> float:
        """Compare fence and ledger; while the pool is frozen they cannot be. Returns how long that is (in seconds)."""
        asked_for = dict(self.guard.fence.leases)
        joined = self.guard.joining.unheard()
        answer = await self._ask(verbs.snapshot(self._keys, length=1))
        if not isinstance(answer, a.Pictured):
            return RETRY_S
        if answer.snapshot.frozen_ms > 0:
            return answer.snapshot.frozen_ms / 1000 + JUST_AFTER_S
        snapshot = answer.snapshot
        stands = {ticket.id: ticket for ticket in snapshot.leases}
        for id, lease in asked_for.items():
            if (ticket := stands.get(id)) is not None and is_grant_of(ticket, lease):
                self.guard.found(lease, ticket.gpus, exclusive=is_exclusive(ticket))
            elif self.guard.fence.leases.get(id) is lease:
                await self._ended(lease)
        self.guard.joining.compare(joined, snapshot.leases)
        if self.adopts:
            self.adopts = False
            self._adopt(snapshot)
        await self._release_unheard(stands)
        await self._settle(snapshot)
        return 0.0

    async def _release_unheard(self, stands: dict[str, TicketRecord]) -> None:
        """What its holder has left, and whose release never reached the ledger, is released for it."""
        for (id, session), (token, left_at) in list(self.guard.left.items()):
            ticket = stands.get(id)
            if ticket is None or (ticket.token, ticket.session) != (token, session):
                del self.guard.left[id, session]
            elif boottime_s() - left_at >= UNHEARD_S:
                _log.info("guard.released", lease=id, message="a lease that was left is released in the ledger")
                await self._ask(verbs.end(self._keys, session="", id=id, token=token, reason="released"))
                self.guard.left.pop((id, session), None)

    def _adopt(self, snapshot: Snapshot) -> None:
        """Take what stood before the guard came: it is in, though nobody let it in."""
        members: dict[str, list[Party]] = {}
        for ticket in snapshot.leases:
            if ticket.of:
                members.setdefault(ticket.of, []).append(party_of(ticket))
        for ticket in snapshot.leases:
            if ticket.state == "held" and ticket.id not in {lease.id for lease in self.guard.waiting}:
                self.guard.adopt_ledgers(lease_of(ticket, members.get(ticket.id, [])))
        self.guard.doubtful = False  # what the record may have lost, the ledger has

    async def _ended(self, lease: Lease) -> None:
        """The ledger does not have this lease, or has another one under its id."""
        if lease.lost:
            return self._see_out(lease)
        answer = await self._ask(verbs.confirm(self._keys, session="", id=lease.id, token=0))
        if self.guard.fence.leases.get(lease.id) is not lease:
            return None
        if not isinstance(answer, a.Gone | a.Lapsed):
            self._must_look = True  # the ledger has just lost its data
            return None
        if lease.fresh and (isinstance(answer, a.Lapsed) or answer.reason == "unknown"):
            # A body begins only when the ledger too says yes: this one has not begun, or was made up.
            return self.guard.throw_out(lease)
        if isinstance(answer, a.Lapsed):
            # The ticket waits again, or has a later grant: this one was never confirmed, so its body has not begun.
            self.guard.lost(lease, "lapsed", withdrawn=True)
        elif answer.reason == "unknown":
            # Ended so long ago that nobody remembers how.
            self.guard.lost(lease, "unknown", withdrawn=True)
        elif answer.reason in LOST_BY:
            self.guard.lost(lease, answer.reason)
        else:
            # Released by its holder, whose `leave` was not heard.
            return self.guard.over(lease)
        return self._see_out(lease)

    async def _settle(self, snapshot: Snapshot) -> None:
        """Report the gpus settled on which nothing of a lost lease is left."""
        for record in snapshot.gpus:
            if record.state not in ("settling", "quarantined"):
                continue
            standing = {ticket.id for ticket in snapshot.leases}
            key = record.gpu.key
            if any(lease.lost or not lease.inside or lease.id not in standing for lease in self.guard.fence.on(key)):
                continue
            if await self.out.occupants(key, frozenset()):
                continue
            await self._report(key, "settled", "nothing of the earlier run is left")

    async def _report(self, gpu: str, state: str, reason: str) -> None:
        await self._ask(verbs.report(self._keys, session="", gpu=gpu, state=state, reason=reason))

    def _see_out(self, lease: Lease) -> None:
        if (lease.id, lease.token) not in self._leaving and self._tasks is not None:
            self._leaving.add((lease.id, lease.token))
            self._tasks.start_soon(self._seen_out, lease)

    async def _seen_out(self, lease: Lease) -> None:
        try:
            while True:
                try:
                    return await self.out.see_out(lease)
                except StoreUnavailable:
                    await anyio.sleep(RETRY_S)
        finally:
            self._leaving.discard((lease.id, lease.token))
            self.wake(look=True)
