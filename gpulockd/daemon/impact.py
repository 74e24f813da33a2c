"""Reads from the store what the impact of a change, and the dry run of one, are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gpulockd.config.change import base_as_of
from gpulockd.config.impact import LONGEST_MS, NO_CHANGE, Impact, impact, windows
from gpulockd.config.live import live_for
from gpulockd.config.replay import Replayed, record_of, replayed
from gpulockd.errors import ConfigError
from gpulockd.ledger import revisions
from gpulockd.ledger.happened import lately
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.measured import impact_of
from gpulockd.ledger.recorded import DAY_MS, Ask
from gpulockd.ledger.revisions import Revision, Tree
from gpulockd.ledger.statistics import Statistics
from gpulockd.settings import Settings, merged, settings_from

PAGE = 50

DRY_RUN_S = 7 * 86_400.0
"""How far back a dry run looks (in seconds), in whole days."""


class Impacts:
    """What changes have done to one pool, and what one would have done.

    :param ask: sends a script
    :param settings: those in force now
    """

    def __init__(self, ask: Ask, keys: PoolKeys, settings: Callable[[], Settings]) -> None:
        self._ask = ask
        self._keys = keys
        self._settings = settings

    def __repr__(self) -> str:
        return f"<Impacts {self._keys.pool}>"

    async def __call__(self, revision: int | None = None) -> Impact:
        """Compare before and after a revision (None: the latest change of this pool; there may be none).

        :raises KeyError: if there is no such revision, or it did not change this pool
        :raises StoreUnavailable: if the store is away
        """
        found = await self._found(revision)
        if found is None:
            return NO_CHANGE
        changed, earlier, last, next_ = found
        state = await revisions.read(self._ask)
        at_ms = changed.at_ms
        compared = windows(
            at_ms,
            last_ms=None if last is None else last.at_ms,
            next_ms=None if next_ is None else next_.at_ms,
            now_ms=state.wall_ms,
        )
        is_last = compared.after_to_ms >= state.wall_ms
        bases = await revisions.bases(self._ask, self._keys.pool)
        return impact(
            change_ms=at_ms,
            before=await impact_of(self._ask, self._keys, from_ms=compared.before_from_ms, to_ms=at_ms),
            after=await impact_of(
                self._ask, self._keys, from_ms=at_ms, to_ms=None if is_last else compared.after_to_ms
            ),
            gpu_lock_before={} if earlier is None else self._gpu_lock(earlier, bases),
            gpu_lock_after=self._gpu_lock(changed, bases),
            revision=changed.number,
            author=changed.author,
            reason=changed.reason,
            diff=tuple(msgspec.to_builtins(one) for one in changed.diff),
        )

    async def replay(self, tree: Tree) -> Replayed:
        """Say what the settings in force with this tree over them would have done to what is on record.

        :raises ConfigError: if the tree cannot be used
        :raises StoreUnavailable: if the store is away
        """
        keys, state = self._keys, await revisions.read(self._ask)
        bases = await revisions.bases(self._ask, keys.pool)
        base = base_as_of(bases, state.current.number) if state.current is not None else None
        proposed = settings_from(merged(base or {}, live_for(state.live, keys.pool), tree))
        statistics = await Statistics.read(self._ask, keys, since_s=DRY_RUN_S)
        since_ms = max(statistics.from_ms // DAY_MS * DAY_MS, statistics.book.since_ms)
        happened = (await lately(self._ask, keys, since_ms=since_ms)).events
        recent = [event for event in happened if not event.is_probe]
        tallies = {task: known.window for task, known in statistics.tasks.items()}
        return replayed(
            present=self._settings(),
            proposed=proposed,
            record=record_of(tallies, recent),
            recent=recent,
            since_ms=since_ms,
            until_ms=statistics.at_ms,
        )

    async def _found(
        self, wanted: int | None
    ) -> tuple[Revision, Revision | None, Revision | None, Revision | None] | None:
        """Return the revision, the one before it, and those before and after it that changed this pool."""
        known: list[Revision] = []  # latest first
        before: int | None = None
        while True:
            page = await revisions.history(self._ask, before=before, count=PAGE)
            known += page
            changes = [one for one in known if self._is_change(one)]
            if len(page) < PAGE or _reaches(changes, wanted):
                break
            before = page[-1].number
        here = [n for n, one in enumerate(changes) if wanted is None or one.number == wanted]
        if not here:
            if wanted is None or wanted == 0:
                return None
            raise KeyError(wanted)
        n = here[0]
        changed = changes[n]
        earlier = next((one for one in known if one.number < changed.number), None)
        last = changes[n + 1] if n + 1 < len(changes) else None
        return changed, earlier, last, changes[n - 1] if n else None

    def _is_change(self, revision: Revision) -> bool:
        return revision.number > 0 and revision.pool in ("", self._keys.pool)

    def _gpu_lock(self, revision: Revision, bases: dict[int, Tree]) -> dict[str, Any]:
        """Return how clients waited as of a revision; empty if that cannot be known any more."""
        base = base_as_of(bases, revision.number)
        try:
            settings = settings_from(merged(base or {}, live_for(revision.live, self._keys.pool)))
        except ConfigError:
            return {}
        block: dict[str, Any] = msgspec.to_builtins(settings.gpu_lock)
        return block


def _reaches(changes: Sequence[Revision], wanted: int | None) -> bool:
    """Whether the change that is wanted is known, and the one before it or none that is near enough to matter."""
    if not changes:
        return False
    at = next((n for n, one in enumerate(changes) if wanted is None or one.number <= wanted), None)
    return at is not None and (at + 1 < len(changes) or changes[-1].at_ms < changes[at].at_ms - LONGEST_MS)
