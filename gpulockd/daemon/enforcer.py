"""Sees to leases that are old or silent on their own time: it sleeps until the next age that counts, and then judges.

Whatever brings a nearer one comes with an event of the pool. What is judged is in `judging`, what is done in `obeying`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio
import anyio.abc
import structlog

from gpulockd.daemon import judging
from gpulockd.daemon.judging import Reading
from gpulockd.daemon.levels import Rules
from gpulockd.daemon.obeying import LOGGER, Asks, Obeying, PressRun, nobody
from gpulockd.errors import StoreUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys

GATHER_S = 0.25
"""How long news gathers before a look (in seconds): so late may act a limit of a lease that has just begun."""

JUST_AFTER_S = 0.002
RETRY_S = 0.2
MOST_RETRY_S = 5.0

LOOKED_AT = frozenset(
    {"lock_acquired", "lock_revoked", "gpu_settled", "gpu_resumed", "gpu_quarantined", "config_changed", "broken"}
)
"""News after which a limit may be nearer, or a recovery over; "broken": anything may have been missed."""

_log = structlog.get_logger(LOGGER)


class Enforcer:
    """What it has done, and what is under way, stands in `obeying`.

    :param ask: sends a script
    :param session: the id of the daemon's session at this moment
    :param rules: the rules in force at this moment
    :param runs: what this host knows of the leases' runs, by lease id
    :param press: asks whoever watches runs to try again
    """

    def __init__(
        self,
        keys: PoolKeys,
        ask: Asks,
        *,
        session: Callable[[], str],
        rules: Callable[[], Rules],
        runs: Callable[[], Mapping[str, Reading]] = dict,
        press: PressRun = nobody,
    ) -> None:
        self.obeying = Obeying(keys, ask, session, press)
        self._keys = keys
        self._ask = ask
        self._rules = rules
        self._runs = runs
        self._news = anyio.Event()
        self._looking = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Enforcer {self._keys.pool}>"

    def wake(self) -> None:
        """Look soon: the rules have changed."""
        self._news.set()

    def hear(self, kind: str) -> None:
        """Something has happened in the pool."""
        if kind in LOOKED_AT:
            self._news.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Judge and obey until cancelled; while the store is away, try again."""
        task_status.started()
        retry_s = RETRY_S
        while True:
            self._news = anyio.Event()
            try:
                due_s = await self.look()
                retry_s = RETRY_S
            except StoreUnavailable as away:
                _log.debug("limits.store_away", logger=LOGGER, message=away.message)
                due_s, retry_s = retry_s, min(2 * retry_s, MOST_RETRY_S)
            with anyio.move_on_after(due_s) as until_due:
                await self._news.wait()
            if not until_due.cancelled_caught:
                await anyio.sleep(min(GATHER_S, due_s))

    async def look(self, *, full: bool = False) -> float:
        """Judge the pool as it is now and obey. Returns how long the ages alone bring nothing (in seconds).

        :param full: ask those again who were asked to stop
        :raises StoreUnavailable: if the store does not answer
        """
        async with self._looking:
            answer = await self._ask(verbs.snapshot(self._keys, length=1))
            if not isinstance(answer, a.Pictured):
                return MOST_RETRY_S
            snapshot, rules, runs = answer.snapshot, self._rules(), self._runs()
            self.obeying.see(snapshot)
            for order in judging.judge(snapshot, self.obeying.readings(runs), rules, anyio.current_time()):
                await self.obeying.obey(order)
            readings = self.obeying.readings(runs)
            for mark in judging.reminders(snapshot, readings, rules) if full else ():
                await self.obeying.obey(mark)
            return judging.next_look_s(snapshot, readings, rules, anyio.current_time()) + JUST_AFTER_S
