"""Makes revisions: one at a time, each from the one in force, none that does not fit in every pool that it is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import msgspec

from gpulockd.config.change import (
    OF_ATTEMPTS,
    STAYS,
    block_of,
    live_diff,
    needs_trial,
    previous_stable,
    restored,
    sparing,
    spoken,
)
from gpulockd.config.live import ALL, Live, Tree
from gpulockd.config.results import Changed
from gpulockd.daemon.inforce import InForce
from gpulockd.daemon.poolviews import Bases, bases_of, check_scope, revision_of, settings_in, validated_as, what_differs
from gpulockd.daemon.uptake import MOST_TRIES, Uptake
from gpulockd.errors import ConfigConflict, StoreUnavailable, Unvalidated
from gpulockd.ledger import revisions
from gpulockd.ledger.revisions import Ask, Change, Revision

Pools = Callable[[], Awaitable[Collection[str]]]


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes a revision, why, and by which way; from which revision, if that counts."""

    author: str
    reason: str
    origin: str
    expected: int | None = None


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A change that is wanted: how the live document becomes another.

    `documents` may have passed a trial, `validated` is the digest under which one surely has.
    """

    next_live: Callable[[Live], Live]
    scope: str = ALL
    documents: tuple[Tree, ...] = ()
    validated: str = ""
    unvalidated: bool = False
    dry_run: bool = False


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A way back: the revision before it, the one after (the same if nothing was to be done), and the one restored."""

    before: Revision
    after: Revision
    target: Revision | None = None
    left_alone: tuple[str, ...] = ()
    """Blocks that were otherwise in the one restored, and stay as they are."""

    @property
    def is_one(self) -> bool:
        """Whether anything was done."""
        return self.after.number != self.before.number

    @property
    def restored(self) -> int:
        """The number of the revision whose values are in force."""
        if self.target is not None:
            return self.target.number
        return self.before.number if self.before.of is None else self.before.of


class Revising:
    """Whoever calls it sees to it that only one does.

    :param pools: the pools of the fleet
    """

    def __init__(self, in_force: InForce, uptake: Uptake, ask: Ask, pools: Pools) -> None:
        self._in_force = in_force
        self._uptake = uptake
        self._ask = ask
        self._pools = pools

    async def current(self, expected: int | None = None) -> Revision:
        """Return the revision in force.

        :raises ConfigConflict: if that is not the expected one
        """
        current = (await self._uptake.look()).current
        if current is None:
            raise StoreUnavailable("the store has no revision yet; ask again in a moment")
        if expected is not None and current.number != expected:
            text = f"revision {current.number} is in force, not {expected}: look what it changed, and ask again"
            raise ConfigConflict(text, current=current.number)
        return current

    async def make(self, wish: Wish, deed: Deed) -> Changed:
        """Make a change.

        :raises ConfigError: if it does not fit in some pool
        :raises Unvalidated: if changes must pass a trial first
        :raises ConfigConflict: if another revision came first
        """
        number = -1
        for _ in range(MOST_TRIES):
            current = await self.current(deed.expected)
            number, now = current.number, self._uptake.shown.live
            result, passed = await self._weighed(wish, current, now)
            if result.live == now or wish.dry_run:
                return result
            needs = self._in_force.current.settings.config.require_validation and needs_trial(now, result.live)
            if needs and not (passed or wish.unvalidated):
                raise Unvalidated
            made = await self._revise(current, deed, result, "" if wish.scope == ALL else wish.scope, passed)
            if made is not None:
                await self._uptake.look()
                return msgspec.structs.replace(result, revision=made)
        raise ConfigConflict(current=number)

    async def _weighed(self, wish: Wish, current: Revision, now: Live) -> tuple[Changed, str]:
        """Return what a wish would come to, and the digest under which it has passed a trial."""
        pools = sorted(await self._pools())
        check_scope(wish.scope, pools)
        live = wish.next_live(now)
        touched = pools if wish.scope == ALL else [wish.scope]
        bases = await bases_of(self._ask, touched)
        for pool in touched:
            settings_in(pool, live, bases, current.number)
        self._in_force.settings_under(live)
        passed = wish.validated or await validated_as(self._ask, (*wish.documents, live.get("all", {})))
        result = Changed(
            revision=current,
            diff=self._diff(now, live, bases, current.number) if live != now else (),
            live=live,
            waits_for_restart=self._in_force.waits_for_restart,
            validated=bool(passed),
        )
        return result, passed

    async def _revise(
        self, current: Revision, deed: Deed, result: Changed, pool: str = "", validated: str = "", of: int | None = None
    ) -> Revision | None:
        """Return the revision made; None: another came first."""
        made = await revisions.revise(
            self._ask,
            expected=current.number,
            author=deed.author,
            reason=deed.reason,
            origin=deed.origin,
            live=result.live,
            diff=result.diff,
            pool=pool,
            validated=validated,
            of=of,
            said=spoken(result.diff),
        )
        return made if isinstance(made, Revision) else None

    def _diff(self, before: Live, after: Live, bases: Bases, number: int) -> tuple[Change, ...]:
        own = self._in_force.pool
        pools = sorted(bases, key=lambda pool: (pool != own, pool))
        return what_differs((before, number), (after, number), bases, pools)

    async def go_back(self, to: int | None, deed: Deed, *, whole: bool = False) -> Step:
        """Bring a revision's values back in force. `to` None: the last stable one's (`previous_stable`).

        :param whole: also those of the blocks that a rollback leaves alone (`STAYS`; an automatic one: all but
            `OF_ATTEMPTS`)
        :raises UnknownRevision: if `to` is not kept
        :raises ConfigConflict: if another revision came first
        """
        current = None
        for _ in range(MOST_TRIES):
            current = await self.current(deed.expected)
            number = to
            if number is None:
                known = await revisions.history(self._ask, before=current.number, count=revisions.MOST_REVISIONS)
                number = previous_stable(current, known)
            if number is None or number == current.number:
                return Step(before=current, after=current)
            target = await revision_of(self._ask, number)
            bases = await bases_of(self._ask, sorted(await self._pools()))
            now, then = self._uptake.shown.live, restored(target.live, number, bases, current.number)
            live = then if whole else sparing(now, then, _stays_in(deed))
            alone = tuple(sorted({block_of(change.path) for change in live_diff(live, then)}))
            diff = self._diff(now, live, bases, current.number)
            if not diff:
                return Step(before=current, after=current, target=target, left_alone=alone)
            made = await self._revise(current, deed, Changed(revision=current, diff=diff, live=live), of=number)
            if made is not None:
                outcome = f"undone by revision {made.number}" + (f": {deed.reason}" if deed.reason else "")
                await revisions.mark(self._ask, current.number, outcome=outcome, author=deed.author)
                await self._uptake.look()
                return Step(before=current, after=made, target=target, left_alone=alone)
        raise ConfigConflict(current=current.number if current is not None else None)


def _stays_in(deed: Deed) -> Callable[[str], bool]:
    if deed.origin == "auto_rollback":
        return lambda block: block not in OF_ATTEMPTS
    return lambda block: block in STAYS
