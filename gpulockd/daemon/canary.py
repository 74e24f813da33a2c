"""What is so of a rollout now: who lives in the fleet, what has happened where its candidate is in force.

It reads and counts, and decides nothing. What was counted, and through which event, belongs to the rollout's state, so
the next driver goes on where this one stood.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import msgspec

from gpulockd.config.rollout import counted
from gpulockd.config.staged import Facts, Rollout, Unit
from gpulockd.events import AlertRaised, Event, decode
from gpulockd.ledger import revisions, verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.living import Living, cpu_time_s, living
from gpulockd.ledger.revisions import RolloutRow, State
from gpulockd.ledger.store import Store
from gpulockd.ledger.tally import Outcome, outcome

PAGE = 500
MOST_PAGES = 40
"""So many pages of events are read at one look; the rest at the next."""

MOST_SINCE = 100
"""So many revisions are looked at for a way back among them."""

CPU_LEAST_S = 1.0
"""The CPU of the store is measured over this time at least (in seconds)."""

SESSION_LETTERS = 8
"""Events carry so many letters of a session's id, and its place comes from them."""

CRITICAL = "critical"

ShareOf = Callable[[str, str], float]


class Canary:
    """Reads what a rollout goes by."""

    def __init__(self, pool: str, store: Callable[[], Store], share_of: ShareOf) -> None:
        """:param store: a connection that looks at no pool's epoch
        :param share_of: the place in [0, 1) of a session in a rollout, by the id of each
        """
        self._pool = pool
        self._store = store
        self._share_of = share_of
        self._cpu: tuple[float, float] | None = None

    async def fleet(self) -> dict[str, Living]:
        """Who lives in each pool of the fleet.

        :raises StoreUnavailable: if the store is away
        """
        found = {}
        for pool in await self._store().pools():
            keys = PoolKeys(pool)
            # What is due to end does not live, and nobody else may ask in a pool whose daemon is gone.
            await self._store().ask(verbs.snapshot(keys, length=1))
            found[pool] = await living(self._store(), keys)
        return found

    async def facts(self, rollout: Rollout, row: RolloutRow, state: State) -> Facts:
        """What is so now.

        :raises StoreUnavailable: if the store is away
        """
        fleet = await self.fleet()
        own = rollout.pools[0] if rollout.pools else self._pool
        sessions = fleet[own].sessions if rollout.unit == "sessions" and own in fleet else ()
        current = state.current
        number = current.number if current else -1
        return Facts(
            elapsed_ms=row.elapsed_ms,
            wall_ms=row.wall_ms,
            living=_living(fleet),
            places=tuple(self._place(rollout, session) for session in sessions),
            revision=number,
            rolled_back=number != rollout.base and await self._went_back(rollout.base, number),
            carrying=frozenset(pool for pool, of_pool in fleet.items() if of_pool.candidate == rollout.id),
        )

    async def sessions(self, rollout: Rollout) -> tuple[int, int] | None:
        """How many of the living worker sessions are in, and how many there are; None where hosts are the unit.

        :raises StoreUnavailable: if the store is away
        """
        if rollout.unit != "sessions" or not rollout.pools:
            return None
        found = (await living(self._store(), PoolKeys(rollout.pools[0]))).sessions
        below = rollout.carries(rollout.pools[0])
        return sum(self._place(rollout, session) < below for session in found), len(found)

    async def _went_back(self, base: int, number: int) -> bool:
        """Whether one of the revisions since `base` was a way back; another may have come after it before any look."""
        since = min(max(1, number - base), MOST_SINCE)
        return any(one.of is not None for one in await revisions.history(self._store().ask, count=since))

    async def unit(self) -> tuple[Unit, tuple[str, ...]]:
        """What a share is of: hosts if several live, else the sessions of this one. And the living hosts."""
        alive = _living(await self.fleet())
        return ("pools" if len(alive) > 1 else "sessions"), alive

    def _place(self, rollout: Rollout, session: str) -> float:
        return self._share_of(rollout.id, session[:SESSION_LETTERS])

    async def counted(self, rollout: Rollout) -> Rollout:
        """Return the rollout after what has happened since it was last counted.

        :raises StoreUnavailable: if the store is away
        """
        for pool in rollout.pools:
            rollout = await self._count(rollout, pool)
        return counted(rollout, {}, cpu=await self._cpu_load())

    async def _count(self, rollout: Rollout, pool: str) -> Rollout:
        stream = PoolKeys(pool).events_channel
        position = rollout.positions.get(pool)
        if position is None:
            position = await self._before_the_stage(rollout, stream)
        for _ in range(MOST_PAGES):
            rows = await self._store().read_events(stream, f"{position}-1", PAGE)
            if not rows:
                # Events of a store that has lost its data are numbered anew.
                position = min(position, await self._latest(stream))
                break
            seq = _head(rows[-1])
            events = [event for row in rows if (event := decode(row)) is not None and self._is_of(rollout, event)]
            missed = _head(rows[0]) - position - 1 if len(rows) == PAGE else 0
            rollout = counted(
                rollout,
                {pool: seq},
                outcomes=[ended for event in events if (ended := self._outcome(rollout, event)) is not None],
                alerts=[
                    _named(event) for event in events if isinstance(event, AlertRaised) and event.level == CRITICAL
                ],
                missed=max(0, missed),
            )
            position = seq
            if len(rows) < PAGE:
                break
        return counted(rollout, {pool: position})

    async def _latest(self, stream: str) -> int:
        rows = await self._store().latest_events(stream, 1)
        return _head(rows[0]) if rows else 0

    async def _before_the_stage(self, rollout: Rollout, stream: str) -> int:
        """The last event before the stage began, as far as one page reaches back."""
        rows = await self._store().latest_events(stream, PAGE)
        for row in rows:
            if _when(row) < rollout.began_wall_ms:
                return _head(row)
        return _head(rows[-1]) - 1 if rows else 0

    def _is_of(self, rollout: Rollout, event: Event) -> bool:
        return event.at_ms >= rollout.began_wall_ms

    def _outcome(self, rollout: Rollout, event: Event) -> Outcome | None:
        """How an attempt ended that began under the candidate; None for all else."""
        ended = outcome(event)
        if ended is None or event.at_ms - (event.waited_ms or 0) < rollout.began_wall_ms:
            return None
        if rollout.unit == "pools":
            return ended
        return ended if event.session and self._place(rollout, event.session) < rollout.below else None

    async def _cpu_load(self) -> float | None:
        """The share of a core that the store has used since the last measurement; None if that was a moment ago."""
        used_s, now_s = await cpu_time_s(self._store()), anyio.current_time()
        if used_s is None:
            return None
        before = self._cpu
        if before is None or used_s < before[1]:
            self._cpu = (now_s, used_s)
            return None
        if now_s - before[0] < CPU_LEAST_S:
            return None
        self._cpu = (now_s, used_s)
        return (used_s - before[1]) / (now_s - before[0])


def _living(fleet: dict[str, Living]) -> tuple[str, ...]:
    """The pools whose daemon lives."""
    return tuple(sorted(pool for pool, of_pool in fleet.items() if of_pool.daemon))


class _Head(msgspec.Struct):
    seq: int
    at_ms: int = 0


_read_head = msgspec.json.Decoder(_Head).decode


def _head(row: bytes) -> int:
    return _read_head(row).seq


def _when(row: bytes) -> int:
    return _read_head(row).at_ms


def _named(event: AlertRaised) -> str:
    return f"{event.rule or event.reason or 'without a name'} in {event.pool}"
