"""Watches how a new revision does: marks it stable when it has run well, takes it back when too many waits time out.

What is decided stands in `gpulockd.config.stability`. Any daemon of the fleet may come to the decision; the store lets
one carry it out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import anyio
import anyio.abc
import structlog

from gpulockd.config.results import RolledBack, Shown
from gpulockd.config.spells import ShareOf, is_within, touching, without_canaries
from gpulockd.config.stability import Attempts, Course, Verdict, judge, tripped
from gpulockd.config.staged import Spell
from gpulockd.daemon.rollout_view import read
from gpulockd.errors import ConfigConflict, GpuLockError, StoreUnavailable
from gpulockd.ledger import revisions
from gpulockd.ledger.happened import lately
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import Ask
from gpulockd.ledger.revisions import Revision
from gpulockd.ledger.statistics import Statistics
from gpulockd.settings import ConfigBlock, Settings

LONGEST_LOOK_S, SHORTEST_LOOK_S = 5.0, 0.2
"""How often a revision that is not stable is looked at (in seconds): ten times a window, within these."""

IDLE_S = 30.0
"""How often to look whether there is one to be watched, if nobody tells (in seconds)."""

BEFORE_MS = 3_600_000
"""How much of the time before a revision says how it was then (in ms)."""

MINUTE_MS = 60_000

_log = structlog.get_logger(__name__)


class Configures(Protocol):
    """The configuration, as this service needs it."""

    @property
    def state(self) -> Shown:
        """What is in force."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def carries(self) -> bool:
        """Whether a rollout tries a candidate here, and judges by its own gates."""

    async def judged(self, number: int, *, stable: bool | None, outcome: str) -> None:
        """Say how a revision has turned out."""

    async def roll_back(
        self, *, to: int | None = None, author: str, reason: str, origin: str, expected: int | None = None
    ) -> RolledBack:
        """Go back."""


class Trying:
    """Looks while there is a revision that is not stable; else it waits for one.

    :param pools: the pools of the fleet
    :param share_of: the place of a session in a rollout: what its candidate did is not this revision's doing
    """

    def __init__(
        self, configures: Configures, ask: Ask, pools: Callable[[], Awaitable[Collection[str]]], share_of: ShareOf
    ) -> None:
        self.verdict = Verdict("wait", "")
        self._configures = configures
        self._ask = ask
        self._pools = pools
        self._share_of = share_of
        self._spells: tuple[Spell, ...] = ()
        self._news = anyio.Event()
        self._of: Revision | None = None
        self._courses: dict[str, Course] = {}
        self._before: dict[str, Attempts] = {}
        self._done = -1
        self._blameless = -1

    def __repr__(self) -> str:
        return f"<Trying {self._of.number if self._of else '-'} {self.verdict.word}>"

    def wake(self, _revision: Revision | None = None) -> None:
        """Another revision is in force."""
        self._news.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled."""
        task_status.started()
        while True:
            self._news = anyio.Event()
            current = self._configures.state.current
            watched = current is not None and not current.stable and current.number != self._done
            watched = watched and not self._configures.carries
            try:
                if watched and current is not None:
                    await self._look(current)
            except StoreUnavailable as away:
                _log.debug("config.store_away", message=away.message)
            except GpuLockError as trouble:
                _log.error("config.not_judged", message=trouble.message)
            pause_s = self._configures.settings.config.rollback_after / 10
            pause_s = min(LONGEST_LOOK_S, max(SHORTEST_LOOK_S, pause_s)) if watched else IDLE_S
            with anyio.move_on_after(pause_s):
                await self._news.wait()

    async def _look(self, current: Revision) -> None:
        rules = self._configures.settings.config
        if self._of is None or (self._of.number, self._of.id) != (current.number, current.id):
            self._of, self._courses, self._before = current, {}, {}
        rollout = read(await revisions.read_rollout(self._ask))
        self._spells = rollout.spells if rollout is not None else ()
        age_s, recounted, begin_anew = 0.0, {}, []
        for pool in [current.pool] if current.pool else sorted(await self._pools()):
            counted, at_ms = await self._count(current, pool)
            age_s = max(age_s, (at_ms - current.at_ms) / 1000)
            if counted is None:
                continue
            self._courses[pool].see(at_ms / 1000, counted)
            spells, since_ms = touching(self._spells, pool), round(at_ms - rules.rollback_after * 1000)
            within = is_within(spells, since_ms)
            if within or (spells and self._trips(pool, rules)):
                recounted[pool] = await self._recount(current, pool, since_ms)
            if within:
                begin_anew.append(pool)
        self.verdict = judge(age_s, self._courses, self._before, rules, recounted)
        for pool in begin_anew:
            del self._courses[pool]
        if self.verdict.word == "stable":
            await self._configures.judged(current.number, stable=True, outcome=f"ran well: {self.verdict.why}")
        elif self.verdict.word == "roll_back" and current.number != self._blameless:
            await self._take_back(current)

    def _trips(self, pool: str, rules: ConfigBlock) -> bool:
        return bool(tripped(self._courses[pool].lately, self._before.get(pool, Attempts()), rules))

    async def _recount(self, current: Revision, pool: str, since_ms: int) -> Attempts:
        """Count the attempts of the last window one by one, without those that began under a candidate."""
        found = await lately(self._ask, PoolKeys(pool), since_ms=max(since_ms, current.at_ms))
        grace_ms = self._configures.settings.session.ttl * 1000
        return without_canaries(found.events, touching(self._spells, pool), self._share_of, grace_ms)

    async def _count(self, current: Revision, pool: str) -> tuple[Attempts | None, int]:
        """Return what a pool has counted in all, and when (wall clock, ms). The first time it begins a course."""
        keys = PoolKeys(pool)
        if pool in self._courses:
            now = await Statistics.read(self._ask, keys, since_s=0, tasks=())
            return (Attempts.of(now.book.total), now.at_ms) if now.at_ms else (None, 0)
        # Whole minutes are kept, so of an older revision all but its first minute counts.
        # What was counted while the pool had a candidate says nothing, neither of it nor of the time before.
        spells = touching(self._spells, pool)
        first = await Statistics.read(self._ask, keys, since_s=0, tasks=())
        if not first.at_ms:
            return None, 0
        began_ms = max([current.at_ms, *(spell.to_ms or first.at_ms for spell in spells)])
        now = await Statistics.read(self._ask, keys, from_ms=began_ms + MINUTE_MS, tasks=())
        until_ms = current.at_ms
        for spell in sorted(spells, key=lambda spell: -spell.from_ms):
            if spell.from_ms < until_ms and (not spell.to_ms or spell.to_ms > until_ms - BEFORE_MS):
                until_ms = spell.from_ms
        before = await Statistics.read(self._ask, keys, from_ms=until_ms - BEFORE_MS, to_ms=until_ms, tasks=())
        self._before[pool] = Attempts.of(before.window)
        total = Attempts.of(now.book.total)
        began = total.minus(Attempts.of(now.window)) if now.at_ms > began_ms + MINUTE_MS else total
        window_s = self._configures.settings.config.rollback_after
        self._courses[pool] = Course(now.at_ms / 1000, began or total, window_s)
        return total, now.at_ms

    async def _take_back(self, current: Revision) -> None:
        self._done = current.number
        if not self._configures.settings.config.auto_rollback:
            _log.warning("config.trips", revision=current.number, message=f"{self.verdict.why}; auto_rollback is off")
            return
        _log.warning("config.trips", revision=current.number, message=self.verdict.why)
        try:
            done = await self._configures.roll_back(
                author="gpulockd", reason=self.verdict.why, origin="auto_rollback", expected=current.number
            )
            if not done.diff:
                self._done, self._blameless = -1, current.number
                _log.warning(
                    "config.blameless",
                    revision=current.number,
                    message="nothing since the last stable revision changed how is waited or held: it is left in force",
                )
        except ConfigConflict as other:
            _log.info("config.taken_back_by_another", message=other.message)
        except GpuLockError:
            self._done = -1
            raise
