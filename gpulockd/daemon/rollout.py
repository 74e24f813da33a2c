"""The staged rollout of the fleet, as people steer it: begin, look, approve, pause, resume, abort.

Its law: a word is written into the state in the store, or refused with the reason; `driving` does what follows from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Literal, Protocol

import msgspec

from gpulockd.config.change import refuse_own_judges
from gpulockd.config.results import Changed
from gpulockd.config.rollout import begin, commanded, given_up
from gpulockd.config.staged import Agreed, Facts, NotNow, Rollout, RolloutLimits, Stage, Unit
from gpulockd.daemon.canary import Canary
from gpulockd.daemon.rollout_view import read, view
from gpulockd.errors import ConfigError, StoreUnavailable, Unvalidated
from gpulockd.ledger import revisions
from gpulockd.ledger.revisions import RolloutConflict, RolloutRow, State
from gpulockd.ledger.store import Store

Tree = dict[str, Any]
Command = Literal["approve", "pause", "resume", "abort"]

TRIES = 5


class Changes(Protocol):
    """Says what a change would be (`Configuring.change`)."""

    async def change(
        self,
        tree: Tree,
        *,
        author: str,
        reason: str,
        origin: str,
        dry_run: bool = ...,
        unvalidated: bool = ...,
        unset: Collection[str] = ...,
    ) -> Changed: ...


class Block(RolloutLimits, Protocol):
    """`rollout:` of the settings."""

    @property
    def stages(self) -> tuple[tuple[float, float], ...]: ...


Reaches = Callable[[], Awaitable[str]]
"""Says why no alert would reach anybody; "" if an alert channel has answered."""


class Rollouts:
    """The rollout of the fleet, as it is steered from this daemon. `on_word` is told of each word that was written."""

    def __init__(
        self,
        *,
        pool: str,
        store: Callable[[], Store],
        configuring: Changes,
        block: Callable[[], Block],
        canary: Canary,
        reaches: Reaches,
    ) -> None:
        """:param store: a connection that looks at no pool's epoch
        :param block: the settings in force
        :param reaches: why no alert would reach anybody
        """
        self._pool = pool
        self._store = store
        self._configuring = configuring
        self._block = block
        self._canary = canary
        self._reaches = reaches
        self.on_word: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Rollouts {self._pool}>"

    async def _ask(self, call: Any) -> Any:
        return await self._store().ask(call)

    async def state(self) -> dict[str, Any] | None:
        """The rollout as it stands, ready for JSON; the last one after its end, None before the first.

        :raises StoreUnavailable: if the store is away
        """
        row = await revisions.read_rollout(self._ask)
        rollout = read(row)
        return None if rollout is None else view(rollout, row, await self._sessions(rollout))

    async def _sessions(self, rollout: Rollout) -> tuple[int, int] | None:
        return None if rollout.over else await self._canary.sessions(rollout)

    async def start(
        self,
        tree: Tree,
        *,
        unset: Collection[str] = (),
        stages: tuple[tuple[float, float], ...] | None = None,
        author: str,
        reason: str,
        unvalidated: bool = False,
    ) -> dict[str, Any]:
        """Begin to bring a change to the fleet in stages.

        :param unset: paths that the candidate takes out of the live configuration
        :param stages: (share, hold in seconds) each; None: those of the settings
        :param unvalidated: begin although no trial has passed it; the audit says so
        :raises Unvalidated: if no trial has passed it
        :raises NotNow: if one is under way, nothing is stable to go back to, or no alert would reach anybody
        :raises ConfigError: if the candidate fits nowhere or changes nothing
        """
        row = await revisions.read_rollout(self._ask)
        before = read(row)
        if before is not None and not before.over:
            under_way = f"the rollout {before.id} of {before.author} is under way ({before.phase})"
            raise NotNow(f"{under_way}: wait for its end, or abort it", phase=before.phase)
        state = await revisions.read(self._ask)
        validated = await self._fit_to_begin(tree, unset, state, author, reason, unvalidated)
        unit, alive = await self._canary.unit()
        block = self._block()
        chosen = stages if stages is not None else block.stages
        new = _new(tree, unset, chosen, author, reason, unit, self._pool, validated, state)
        spells = before.spells if before is not None else ()
        new = msgspec.structs.replace(new, spells=spells, limits=Agreed.of(block))
        facts = Facts(elapsed_ms=row.elapsed_ms, wall_ms=row.wall_ms, living=alive, revision=new.base)
        if unit == "sessions":
            facts = await self._canary.facts(new, row, state)
        try:
            rollout = begin(new, facts)
        except ValueError as wrong:
            raise ConfigError(f"rollout.stages: {wrong}", path="rollout.stages") from None
        written = await revisions.write_rollout(self._ask, expected=row.version, state=msgspec.to_builtins(rollout))
        if isinstance(written, RolloutConflict):
            raise NotNow("another rollout has begun in the same moment: look at it with `gpulockd config rollout`")
        self._tell()
        return view(rollout, written, await self._sessions(rollout))

    async def _fit_to_begin(
        self, tree: Tree, unset: Collection[str], state: State, author: str, reason: str, unvalidated: bool
    ) -> str:
        """Return the digest under which a trial has passed the candidate, "" where none is wanted (B-203)."""
        dry = await self._configuring.change(
            tree, unset=unset, author=author, reason=reason, origin="rollout", dry_run=True, unvalidated=True
        )
        refuse_own_judges(state.live, dry.live)
        if not dry.diff:
            raise ConfigError("the candidate changes nothing: every host goes by it already")
        if not dry.validated and not unvalidated:
            raise Unvalidated()
        if state.current is None or state.stable is None:
            raise NotNow("no revision is stable, so there is nothing to go back to: wait until the current one is")
        why_not = await self._reaches()
        if why_not:
            raise NotNow(f"no alert would reach anybody: {why_not}; correct `notify` and send a test alert")
        return revisions.digest(tree) if dry.validated else ""

    def _tell(self) -> None:
        if self.on_word is not None:
            self.on_word()

    async def approve(self, *, author: str, reason: str = "") -> dict[str, Any]:
        """Let all go by the candidate, after its last stage. Raises NotNow in any other phase."""
        return await self.command("approve", author=author, reason=reason)

    async def pause(self, *, author: str, reason: str = "") -> dict[str, Any]:
        """Let the stage stay as it is, without its time going on. Raises NotNow unless one holds."""
        return await self.command("pause", author=author, reason=reason)

    async def resume(self, *, author: str, reason: str = "") -> dict[str, Any]:
        """Go on after a pause. Raises NotNow unless it is paused."""
        return await self.command("resume", author=author, reason=reason)

    async def abort(self, *, author: str, reason: str = "") -> dict[str, Any]:
        """Go back. Raises NotNow if it does already, or is over."""
        return await self.command("abort", author=author, reason=reason)

    async def command(self, name: Command, *, author: str, reason: str) -> dict[str, Any]:
        """Write a word into the state.

        :raises NotNow: if the rollout's phase knows no such move, or there is none
        :raises StoreUnavailable: if the store is away
        """
        after, written = await self._say(partial(_commanded, name, author, reason))
        return view(after, written, await self._sessions(after))

    async def given_up(self, *, author: str, reason: str) -> None:
        """Go back because somebody has rolled the configuration back; nothing if no rollout is under way.

        :raises StoreUnavailable: if the store is away
        """
        with suppress(NotNow):
            await self._say(lambda rollout, facts: given_up(rollout, facts, author=author, reason=reason))

    async def _say(self, move: Callable[[Rollout, Facts], Rollout]) -> tuple[Rollout, RolloutRow]:
        for _ in range(TRIES):
            row = await revisions.read_rollout(self._ask)
            rollout = read(row)
            if rollout is None:
                raise NotNow("there is no rollout: begin one with `gpulockd config apply --canary`")
            facts = await self._canary.facts(rollout, row, await revisions.read(self._ask))
            after = move(await self._canary.counted(rollout), facts)
            if after.over and after.phase == rollout.phase:
                return after, row
            state = msgspec.to_builtins(after)
            written = await revisions.write_rollout(self._ask, expected=row.version, state=state)
            if not isinstance(written, RolloutConflict):
                self._tell()
                return after, written
        raise StoreUnavailable("the rollout changes all the time; try again")


def _commanded(name: Command, author: str, reason: str, rollout: Rollout, facts: Facts) -> Rollout:
    return commanded(rollout, name, facts, author=author, reason=reason)


def _new(
    tree: Tree,
    unset: Collection[str],
    stages: tuple[tuple[float, float], ...],
    author: str,
    reason: str,
    unit: Unit,
    pool: str,
    validated: str,
    state: State,
) -> Rollout:
    return Rollout(
        id=revisions.digest([tree, sorted(unset), state.wall_ms])[:8],
        author=author,
        reason=reason,
        stages=tuple(Stage(share, hold_s) for share, hold_s in stages),
        unit=unit,
        base=state.current.number if state.current else -1,
        tree=tree,
        unset=tuple(sorted(unset)),
        validated=validated,
        pools=(pool,) if unit == "sessions" else (),
    )
