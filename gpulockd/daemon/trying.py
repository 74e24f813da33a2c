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
from gpulockd.config.stability import Attempts, Course, Verdict, judge
from gpulockd.errors import ConfigConflict, GpuLockError, StoreUnavailable
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.recorded import Ask
from gpulockd.ledger.revisions import Revision
from gpulockd.ledger.statistics import Statistics
from gpulockd.settings import Settings

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
    """

    def __init__(self, configures: Configures, ask: Ask, pools: Callable[[], Awaitable[Collection[str]]]) -> None:
        self.verdict = Verdict("wait", "")
        self._configures = configures
        self._ask = ask
        self._pools = pools
        self._news = anyio.Event()
        self._of: Revision | None = None
        self._courses: dict[str, Course] = {}
        self._before: dict[str, Attempts] = {}
        self._done = -1

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
        age_s = 0.0
        for pool in [current.pool] if current.pool else sorted(await self._pools()):
            counted, at_ms = await self._count(current, pool)
            age_s = max(age_s, (at_ms - current.at_ms) / 1000)
            if counted is not None:
                self._courses[pool].see(at_ms / 1000, counted)
        self.verdict = judge(age_s, self._courses, self._before, rules)
        if self.verdict.word == "stable":
            await self._configures.judged(current.number, stable=True, outcome=f"ran well: {self.verdict.why}")
        elif self.verdict.word == "roll_back":
            await self._take_back(current)

    async def _count(self, current: Revision, pool: str) -> tuple[Attempts | None, int]:
        """Return what a pool has counted in all, and when (wall clock, ms). The first time it begins a course."""
        keys = PoolKeys(pool)
        if pool in self._courses:
            now = await Statistics.read(self._ask, keys, since_s=0, tasks=())
            return (Attempts.of(now.book.total), now.at_ms) if now.at_ms else (None, 0)
        # Whole minutes are kept, so of an older revision all but its first minute counts.
        now = await Statistics.read(self._ask, keys, from_ms=current.at_ms + MINUTE_MS, tasks=())
        if not now.at_ms:
            return None, 0
        before = await Statistics.read(
            self._ask, keys, from_ms=current.at_ms - BEFORE_MS, to_ms=current.at_ms, tasks=()
        )
        self._before[pool] = Attempts.of(before.window)
        total = Attempts.of(now.book.total)
        began = total.minus(Attempts.of(now.window)) if now.at_ms > current.at_ms + MINUTE_MS else total
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
            await self._configures.roll_back(
                author="gpulockd", reason=self.verdict.why, origin="auto_rollback", expected=current.number
            )
        except ConfigConflict as other:
            _log.info("config.taken_back_by_another", message=other.message)
        except GpuLockError:
            self._done = -1
            raise
