"""Takes up here what the store says, brings to the store what this host's file says, and keeps a copy of both.

Everything is found by comparing: the store's revision with the one in force, the file's base with the one that the
store has of this pool, the kept copy with what the store has. So what was cut anywhere is finished at the next look.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from gpulockd.config.change import base_as_of, lasting, spoken
from gpulockd.config.live import Tree, live_for, unpinned
from gpulockd.config.results import Shown
from gpulockd.daemon.configkept import MOST_AUDITED, MOST_REVISIONS, ConfigKept, KeptFile
from gpulockd.daemon.inforce import InForce
from gpulockd.daemon.poolviews import what_differs
from gpulockd.errors import ConfigConflict, ConfigError
from gpulockd.ledger import revisions
from gpulockd.ledger.revisions import Ask, AuditLine, Revision, State
from gpulockd.settings import flat, value_at

MOST_TRIES = 5
"""How often a change is made anew because another one came first."""

Event = tuple[str, str]
"""The kind of an event (config_changed, config_rolled_back), and its reason."""

Publish = Callable[[Tree, Event | None], Awaitable[object]]
"""Publishes what clients go by, and emits an event with it."""

_log = structlog.get_logger(__name__)


class Uptake:
    """One daemon's hold on the fleet's configuration. Whoever calls `look` sees to it that only one does.

    :param publish: tells the pool's clients
    :param kept: this host's copy
    :param author: whose the file is, for people
    """

    def __init__(self, in_force: InForce, ask: Ask, publish: Publish, kept: KeptFile, author: str) -> None:
        self.shown = Shown()
        self.listeners: list[Callable[[Revision], None]] = []
        self.misfit = ""
        """Why the live document does not fit this host, empty if it does."""
        self._in_force = in_force
        self._ask = ask
        self._publish = publish
        self._kept = kept
        self._author = author
        self._reason = "read at the start"
        self._published: Tree | None = None
        if kept.value is not None:
            in_force.live = kept.value.live

    def file_changed(self, reason: str) -> None:
        """The layers of this host are others than before: the next look brings them to the store."""
        self._reason = reason

    def publish_anew(self) -> None:
        """What was published may be lost."""
        self._published = None

    def said_in(self, path: str) -> int:
        """Return the revision that has set a leaf live as it is now, as far as the kept ones reach back."""
        found = self._in_force.current.revision
        if self._kept.value is None:
            return found
        pool = self._in_force.pool
        now = value_at(live_for(self._kept.value.live, pool), path)
        for revision in self._kept.value.revisions:
            if value_at(live_for(revision.live, pool), path) != now:
                break
            found = revision.number
        return found

    async def look(self) -> State:
        """Compare and take up. Returns what the store says.

        :raises StoreUnavailable: if the store does not answer
        """
        state = await self._with_base(await self._with_history(await revisions.read(self._ask)))
        await self._take(state)
        return state

    async def _with_history(self, state: State) -> State:
        """See to it that there is a revision: the kept ones, or the first."""
        kept = self._kept.value
        if kept is not None and kept.revisions and await self._lacks(state, kept):
            restored = await revisions.restore(
                self._ask,
                revisions=kept.revisions,
                current=kept.current,
                stable=kept.stable,
                live=kept.live,
                author=self._author,
                pool=self._in_force.pool,
                audits=kept.audits,
                bases=kept.bases if kept.pool == self._in_force.pool else None,
            )
            if restored:
                text = f"the store had lost the configuration; revision {kept.current} was brought back"
                _log.warning("config.restored", revision=kept.current, message=text)
            state = await revisions.read(self._ask)
        if state.current is None:
            await revisions.first(self._ask, author=self._author)
            state = await revisions.read(self._ask)
        return state

    async def _lacks(self, state: State, kept: ConfigKept) -> bool:
        """Whether the store lacks something that is kept here."""
        if state.current is None or state.current.number < kept.current:
            return True
        last = kept.audits[-1].id if kept.audits else ""
        if last and not await revisions.audits(self._ask, count=1, before=_behind(last), down_to=last):
            return True
        mine = kept.bases if kept.pool == self._in_force.pool else {}
        return bool(mine) and not await revisions.bases(self._ask, self._in_force.pool)

    async def _with_base(self, state: State) -> State:
        """Bring what file and environment say to the store: as a revision, if it differs from what they said."""
        pool = self._in_force.pool
        for _ in range(MOST_TRIES):
            current = state.current
            if current is None:
                return state
            base, stored = lasting(self._in_force.layers.base), await revisions.bases(self._ask, pool)
            before = base_as_of(stored, current.number)
            if before == base:
                return state
            if before is None:
                if not await self._brings_bases_back():
                    await revisions.set_base(self._ask, pool, base)
            else:
                await self._revise_file(state, current, before, base)
            state = await revisions.read(self._ask)
        raise ConfigConflict("the configuration changes faster than this host's file can be noted")

    async def _brings_bases_back(self) -> bool:
        """Whether the bases that the store has lost since it was looked at are there again, from what is kept here.

        A new one among none would look as if nothing was missing.
        """
        kept, pool = self._kept.value, self._in_force.pool
        if kept is None or kept.pool != pool or not kept.bases:
            return False
        await self._with_history(await revisions.read(self._ask))
        return bool(await revisions.bases(self._ask, pool))

    async def _revise_file(self, state: State, current: Revision, before: Tree, base: Tree) -> None:
        """Make a revision of a file's change, unless another one comes first."""
        pool = self._in_force.pool
        paths = {path for path in {*flat(before), *flat(base)} if flat(before).get(path) != flat(base).get(path)}
        live = unpinned(state.live, pool, paths)
        try:
            diff = what_differs((state.live, 0), (live, 1), {pool: {0: before, 1: base}}, (pool,))
        except ConfigError as wrong:
            # With its pins gone it would not fit: the pins stay.
            _log.error("config.pins_stay", message=wrong.message)
            live, diff = state.live, ()
        of_env = bool(paths) and all(value_at(self._in_force.layers.env_tree, path) is not None for path in paths)
        await revisions.revise(
            self._ask,
            expected=current.number,
            author="environment" if of_env else self._author,
            reason=self._reason,
            origin="environment" if of_env else "file",
            live=live,
            diff=diff,
            pool=pool,
            said=spoken(diff),
            base=base,
        )

    async def _take(self, state: State) -> None:
        current = state.current
        if current is None:
            return
        before = self.shown.current
        try:
            self._in_force.take(state.live, current.number)
            self.misfit = ""
        except ConfigError as wrong:
            if not self.misfit:
                _log.error(
                    "config.does_not_fit", revision=current.number, message=f"it stays as it was: {wrong.message}"
                )
            self.misfit = wrong.message
        kept = self._kept.value
        is_new = kept is None or (kept.current, _id_of(kept)) != (current.number, current.id)
        await self.publish(_event(current, self._in_force.pool) if is_new else None)
        self.shown = Shown(current=current, stable=state.stable, live=state.live)
        await self._keep(state, current)
        if is_new or before is None or before.number != current.number:
            self._tell(current, is_new=is_new)

    async def publish(self, event: Event | None = None) -> None:
        """Publish what clients go by, unless they have it.

        :raises StoreUnavailable: if the store does not answer
        """
        said = self._in_force.published(self._in_force.current.revision)
        if said != self._published or event is not None:
            await self._publish(said, event)
            self._published = said

    def _tell(self, current: Revision, *, is_new: bool) -> None:
        if is_new:
            text = f"revision {current.number} by {current.author or 'nobody named'} ({current.origin}): "
            text += spoken(current.diff) + (f" ({current.reason})" if current.reason else "")
            _log.info("config.changed", revision=current.number, origin=current.origin, message=text)
        for listener in self.listeners:
            listener(current)

    async def _keep(self, state: State, current: Revision) -> None:
        kept = self._kept.value
        fresh = kept is None or kept.pool != self._in_force.pool or not kept.revisions
        if kept is None or fresh or kept.revisions[0] != current or kept.stable != state.stable:
            latest = await revisions.history(self._ask, count=MOST_REVISIONS)
            if state.stable is not None and all(one.number != state.stable for one in latest):
                latest += await revisions.history(self._ask, before=state.stable + 1, count=1)
            bases = await revisions.bases(self._ask, self._in_force.pool)
            if not latest or latest[0].number < current.number or not bases:
                return  # the store has just lost its data: what is kept stays
            numbers = sorted(bases)[-MOST_REVISIONS:]
            kept = ConfigKept(
                current=current.number,
                revisions=tuple(latest),
                pool=self._in_force.pool,
                bases={number: bases[number] for number in numbers},
                audits=kept.audits if kept is not None else (),
            )
        audits = await self._audited(kept.audits)
        await self._kept.keep(msgspec.structs.replace(kept, stable=state.stable, live=state.live, audits=audits))

    async def _audited(self, known: tuple[AuditLine, ...]) -> tuple[AuditLine, ...]:
        """Return the last lines of the audit; only those after the known ones are read, if the store has these."""
        last = known[-1].id if known else ""
        lines = await revisions.audits(self._ask, count=MOST_AUDITED, down_to=last)
        if last and lines and lines[-1].id == last:
            return (*known, *reversed(lines[:-1]))[-MOST_AUDITED:]
        all_there = await revisions.audits(self._ask, count=MOST_AUDITED) if last else lines
        return tuple(reversed(all_there)) or known  # an emptied store says nothing of what there was


def _behind(id: str) -> str:
    """The id right after that of a line of the audit."""
    ms, _, nth = id.partition("-")
    return f"{ms}-{int(nth) + 1}"


def _id_of(kept: ConfigKept) -> str:
    return kept.revisions[0].id if kept.revisions else ""


def _event(current: Revision, pool: str) -> Event | None:
    """The event of a revision in a pool; the first one is no change."""
    if current.origin == "first" or current.pool not in ("", pool):
        return None
    kind = "config_changed" if current.of is None else "config_rolled_back"
    reason: dict[str, Any] = {"number": current.number, "who": current.author, "why": current.reason}
    return kind, "revision {number} by {who}: {why}".format(**reason)


def owner_of(path: str | None) -> str:
    """Return whose a file is, for the history; "environment" where there is none."""
    try:
        uid = os.stat(path).st_uid if path else -1
        return pwd.getpwuid(uid).pw_name if uid >= 0 else "environment"
    except (OSError, KeyError):
        return "environment"
