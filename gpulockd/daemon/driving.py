"""Drives the staged rollout of the fleet, one daemon at a time, and carries its candidate for this daemon's pool.

Its law: the state in the store is the whole truth. It is written before anything is done because of it, what is done
twice does no harm, and whoever finds the state goes on with it. A candidate without a rollout in the store is taken
back: a store that has lost its data has lost the rollout, and every host is on the safe side.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import anyio
import anyio.abc
import msgspec
import structlog

from gpulockd.config.live import ALL, changed
from gpulockd.config.results import Candidate, Changed
from gpulockd.config.rollout import moved, step, told
from gpulockd.config.staged import IN_FORCE, Facts, NotNow, Revise, Rollout, Said, TakeBack, Tell
from gpulockd.daemon.canary import Canary
from gpulockd.daemon.rollout_view import is_at_rest, read
from gpulockd.errors import ConfigConflict, ConfigError, GpuLockError, StoreUnavailable
from gpulockd.ledger import revisions
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.living import take_back
from gpulockd.ledger.revisions import RolloutConflict, RolloutRow, State
from gpulockd.ledger.store import Store

IDLE_S = 30.0
"""How often to look while there is no rollout (in seconds), besides the hints."""

SOONEST_S, LATEST_S = 0.2, 5.0
LOOKS_A_STAGE = 20
"""A stage is looked at so often, but no look sooner than the first of these after another, or later than the second."""

LEAST_TERM_S = 3.0
LOOKS_A_TERM = 4
"""A driver that has missed so many looks has lost its right to drive."""

RETRY_S = 0.5
MOST_RETRY_S = 5.0

_log = structlog.get_logger(__name__)


class Carries(Protocol):
    """Lets this pool go by a candidate, and the whole fleet by what was one (`Configuring`)."""

    async def carry(self, candidate: Candidate | None, event: tuple[str, str] | None = None) -> None: ...

    async def promote(
        self,
        live: dict[str, Any],
        *,
        author: str,
        reason: str,
        origin: str = ...,
        expected: int | None,
        validated: str = ...,
    ) -> Changed: ...


class Driving:
    """This daemon's part in the rollout of the fleet."""

    def __init__(
        self,
        *,
        pool: str,
        store: Callable[[], Store],
        configuring: Carries,
        canary: Canary,
        abort: Callable[[str], Awaitable[None]],
    ) -> None:
        """:param store: a connection that looks at no pool's epoch
        :param abort: ends the rollout for a reason
        """
        self._pool = pool
        self._store = store
        self._configuring = configuring
        self._canary = canary
        self._abort = abort
        self._carried: Candidate | None = None
        self._hinted = anyio.Event()
        self._looking = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Driving {self._pool} carries {self._carried.rollout if self._carried else 'nothing'}>"

    async def _ask(self, call: Any) -> Any:
        return await self._store().ask(call)

    def hint(self) -> None:
        """Something has changed in the store."""
        self._hinted.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Drive or follow until cancelled."""
        task_status.started()
        pause_s = RETRY_S
        while True:
            try:
                rollout = await self.look()
                pause_s = RETRY_S
                await self._until_the_next_look(rollout)
            except StoreUnavailable as away:
                _log.debug("rollout.store_away", message=away.message)
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, MOST_RETRY_S)
            except GpuLockError as trouble:
                _log.error("rollout.failed", message=trouble.message)
                await anyio.sleep(IDLE_S)

    async def _until_the_next_look(self, rollout: Rollout | None) -> None:
        """Follow the hints meanwhile; one of a rollout that has begun, or was moved by a person, ends the rest."""
        pause_s = IDLE_S if rollout is None or is_at_rest(rollout) else _look_s(rollout)
        with anyio.move_on_after(pause_s):
            while True:
                await self._hinted.wait()
                self._hinted = anyio.Event()
                if _phase(await self.follow()) != _phase(rollout):
                    return

    async def look(self) -> Rollout | None:
        """Drive if nobody else does, and carry what this pool is to carry. Returns the rollout as it stands.

        :raises StoreUnavailable: if the store is away
        """
        async with self._looking:
            rollout = read(await revisions.read_rollout(self._ask))
            if rollout is not None and not is_at_rest(rollout):
                term_ms = round(max(LEAST_TERM_S, LOOKS_A_TERM * _look_s(rollout)) * 1000)
                row = await revisions.drive(self._ask, driver=self._pool, term_ms=term_ms)
                rollout = await self._drive(row) if row.driver == self._pool else read(row)
            await self._carry(rollout)
            return rollout

    async def follow(self) -> Rollout | None:
        """Carry what this pool is to carry, and drive nothing.

        :raises StoreUnavailable: if the store is away
        """
        async with self._looking:
            rollout = read(await revisions.read_rollout(self._ask))
            await self._carry(rollout)
            return rollout

    async def _drive(self, row: RolloutRow) -> Rollout | None:
        rollout = read(row)
        if rollout is None or is_at_rest(rollout):
            return rollout
        state = await revisions.read(self._ask)
        if rollout.phase in IN_FORCE:
            rollout = await self._canary.counted(rollout)
        facts = await self._canary.facts(rollout, row, state)
        rollout, todo = step(rollout, facts)
        written = await self._write(row, rollout)
        if written is None:
            return read(await revisions.read_rollout(self._ask))
        after = rollout
        for instruction in todo:
            after = await self._obey(instruction, after, facts, state)
        if after != rollout and await self._write(written, after) is None:
            return read(await revisions.read_rollout(self._ask))
        return after

    async def _write(self, row: RolloutRow, rollout: Rollout) -> RolloutRow | None:
        """Write the state; None if a person or another driver was faster."""
        if read(row) == rollout:
            return row
        state = msgspec.to_builtins(rollout)
        found = await revisions.write_rollout(self._ask, expected=row.version, state=state, driver=self._pool)
        return None if isinstance(found, RolloutConflict) else found

    async def _obey(
        self, instruction: Tell | Revise | TakeBack, rollout: Rollout, facts: Facts, state: State
    ) -> Rollout:
        if isinstance(instruction, Tell):
            for line in instruction.lines:
                _log.info("rollout.moved", rollout=rollout.id, phase=rollout.phase, message=line.text)
                await revisions.audit(
                    self._ask, text=line.text, author=line.author, origin="rollout", revision=rollout.base
                )
            return told(rollout, instruction.lines)
        if isinstance(instruction, Revise):
            return await self._revise(rollout, facts, state)
        for pool in instruction.pools:
            if pool != self._pool and pool not in facts.living:
                await take_back(self._store(), PoolKeys(pool), rollout.id)
        return rollout

    async def _revise(self, rollout: Rollout, facts: Facts, state: State) -> Rollout:
        """Make the candidate the live document of all; done before by a driver that died, it is found done."""
        live = changed(state.live, rollout.tree, scope=ALL, unset=rollout.unset)
        number = state.current.number if state.current else None
        try:
            done = await self._configuring.promote(
                live,
                author=rollout.approved_by or rollout.author,
                reason=f"rollout {rollout.id}: {rollout.reason}",
                origin="rollout",
                expected=number,
                validated=rollout.validated,
            )
        except ConfigConflict:
            return rollout
        except ConfigError as wrong:
            return moved(rollout, "refused", facts, Said(f"it does not fit everywhere: {wrong.message}"))
        result = done.revision.number if done.revision else None
        finished = msgspec.structs.replace(rollout, result=result)
        return moved(finished, "revised", facts, Said(f"the rollout is done: all go by revision {result}"))

    async def _carry(self, rollout: Rollout | None) -> None:
        """Let this pool go by the candidate, or take it back."""
        wanted = await self._wanted(rollout)
        if wanted == self._carried:
            return
        gone = wanted is None and (rollout is None or rollout.phase != "done")
        why = rollout.why if rollout is not None and rollout.why else "the rollout is gone with the store's data"
        event = ("config_rolled_back", f"rollout: {why}") if gone else None
        try:
            await self._configuring.carry(wanted, event)
        except ConfigError as wrong:
            if rollout is None:
                raise
            _log.error("rollout.does_not_fit", rollout=rollout.id, message=wrong.message)
            with suppress(NotNow):
                await self._abort(f"it does not fit the configuration of {self._pool}: {wrong.message}")
            return
        lost, self._carried = self._carried, wanted
        if rollout is None and lost is not None:
            text = f"the rollout {lost.rollout} was lost with the store's data; its candidate is taken back here"
            _log.warning("rollout.lost", rollout=lost.rollout, message=text)
            await revisions.audit(self._ask, text=text, author=self._pool, origin="rollout")

    async def _wanted(self, rollout: Rollout | None) -> Candidate | None:
        below = rollout.carries(self._pool) if rollout is not None else 0.0
        if rollout is None or not below:
            return None
        state = await revisions.read(self._ask)
        live = changed(state.live, rollout.tree, scope=ALL, unset=rollout.unset)
        return Candidate(live=live, revision=rollout.base, rollout=rollout.id, below=below)


def _phase(rollout: Rollout | None) -> tuple[str, str] | None:
    return (rollout.id, rollout.phase) if rollout is not None else None


def _look_s(rollout: Rollout) -> float:
    return min(LATEST_S, max(SOONEST_S, min(stage.hold_s for stage in rollout.stages) / LOOKS_A_STAGE))
