"""The lookout: finds the processes of the leases that stand, so that they are known when their parents die."""

from __future__ import annotations

from collections.abc import Awaitable

import anyio
import structlog

from gpulockd.clock import boottime_s
from gpulockd.daemon.guarding import Guard
from gpulockd.hardware.processes.births import Births
from gpulockd.hardware.processes.following import CardPids, no_cards
from gpulockd.hardware.processes.table import tells_children

LOOK_S = 1.0
"""How often the children of held runs are looked for, and who is on their cards (in seconds)."""

YOUNG_S, YOUNG_FOR_S = 0.25, 10.0
"""The same for a lease that is younger than this: most children are born soon after a lease has begun."""

SCAN_S = 10.0
"""How often all processes of the host are looked through, for what a look may have missed (in seconds)."""

BLIND_SCAN_S = 2.0
"""The same on a kernel that does not tell a process's children."""

LOOK_SHARE, SCAN_SHARE = 100, 200
"""A pause is at least so many times as long as the CPU time of what comes before it. A busy host makes a look late, and
must not make the next one rare."""

_log = structlog.get_logger(__name__)


class Lookout:
    """Looks for members of all runs that the guard follows."""

    def __init__(self, guard: Guard, card_pids: CardPids = no_cards) -> None:
        """:param card_pids: the pids that the cards of a lease show"""
        self._guard = guard
        self._card_pids = card_pids
        self._births = Births()
        self._scan_s = SCAN_S if tells_children() else BLIND_SCAN_S
        self._occupied = anyio.Event()
        self._seen: tuple[object, object] = None, None

    def __repr__(self) -> str:
        return f"<Lookout for {self._guard.runs!r}>"

    def wake(self) -> None:
        """Somebody may be in."""
        if self._guard.fence.leases:
            self._occupied.set()

    async def follow(self) -> None:
        """Look until cancelled: at young leases often, at all now and then, and at nobody while nothing is born."""
        scan_at_s = whole_at_s = 0.0
        while True:
            if not self._guard.fence.leases:
                self._occupied = anyio.Event()
                await self._occupied.wait()
            now_s, young, took_s = anyio.current_time(), self._young(), 0.0
            if now_s >= scan_at_s:
                scan_at_s = now_s + max(self._scan_s, SCAN_SHARE * await self.scan())
                whole_at_s = max(whole_at_s, now_s + LOOK_S)
            elif now_s >= whole_at_s:
                took_s = await self._look()
                whole_at_s = now_s + max(LOOK_S, LOOK_SHARE * took_s)
            elif young:
                took_s = await self._look(young)
            await anyio.sleep(max(YOUNG_S if young else LOOK_S, LOOK_SHARE * took_s))

    def _young(self) -> list[str]:
        since_ms = (boottime_s() - YOUNG_FOR_S) * 1000
        return [lease.id for lease in self._guard.fence.leases.values() if lease.began_ms > since_ms]

    async def scan(self) -> float:
        """Look for new members of the runs, and record them; return the CPU time that it took (in seconds).

        What cannot be looked at now is looked at again: a death is told by the kernel, never by an absence here.
        """
        return await self._found(self._guard.runs.scan(self._card_pids), self._mark())

    async def _look(self, leases: list[str] | None = None) -> float:
        """:param leases: only these; they are looked at again with all others"""
        mark = self._mark()
        if mark is not None and self._seen == (mark, mark):
            return 0.0
        return await self._found(self._guard.runs.look(self._card_pids, leases), mark if leases is None else None)

    def _mark(self) -> object:
        """While it is the same nobody new can be found, but for whom one look may have missed; None: not known."""
        born = self._births.mark()
        shown = [tuple(self._card_pids(lease)) for lease in self._guard.fence.leases]
        return (born, self._guard.runs.held, shown) if born is not None else None

    async def _found(self, looking: Awaitable[float], mark: object) -> float:
        try:
            took_s = await looking
        except (TimeoutError, OSError) as trouble:
            _log.warning("guard.scan_failed", message=f"the processes could not be listed: {trouble}")
            return 0.0
        if mark is not None:
            self._seen = self._seen[1], mark
        self._note_members()
        return took_s

    def _note_members(self) -> None:
        """Record the processes that were found in the runs, for a daemon that comes after this one."""
        for lease in self._guard.fence.leases.values():
            members = sorted((process.pid, process.started_ticks) for process in self._guard.runs.members(lease.id))
            if not set(members) <= set(lease.members):
                lease.members = members
                self._guard.record(lease)
