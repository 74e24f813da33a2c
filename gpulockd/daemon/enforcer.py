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
from gpulockd.events import GpuQuarantined, GpuSettled, LockAcquired, LockRevoked, decode
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.subscription import Subscription

GATHER_S = 0.25
"""How long events gather before a look (in seconds): so late may act a limit of a lease that has just begun."""

JUST_AFTER_S = 0.002
RETRY_S = 0.2
MOST_RETRY_S = 5.0

BRINGS_A_LIMIT = (LockAcquired, LockRevoked, GpuSettled, GpuQuarantined)

_log = structlog.get_logger(LOGGER)


class Enforcer:
    """What it has done, and what is under way, stands in `obeying`.

    :param ask: sends a script
    :param session: the id of the daemon's session at this moment
    :param rules: the rules in force at this moment
    :param runs: what this host knows of the leases' runs, by lease id
    :param press: asks whoever watches runs to try again
    :param deadline_s: for the subscription (in seconds)
    """

    def __init__(
        self,
        url: str,
        keys: PoolKeys,
        ask: Asks,
        *,
        session: Callable[[], str],
        rules: Callable[[], Rules],
        deadline_s: float,
        runs: Callable[[], Mapping[str, Reading]] = dict,
        press: PressRun = nobody,
    ) -> None:
        self.obeying = Obeying(keys, ask, session, press)
        self._url = url
        self._keys = keys
        self._ask = ask
        self._rules = rules
        self._runs = runs
        self._deadline_s = deadline_s
        self._news = anyio.Event()
        self._looking = anyio.Lock()

    def __repr__(self) -> str:
        return f"<Enforcer {self._keys.pool}>"

    def wake(self) -> None:
        """Look soon: the rules have changed."""
        self._news.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Judge and obey until cancelled; while the store is away, try again."""
        task_status.started()
        pause_s = RETRY_S
        while True:
            try:
                subscription = await Subscription.open(
                    self._url, (self._keys.events_channel,), deadline_s=self._deadline_s, sharded=False
                )
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._hear, subscription)
                        pause_s = RETRY_S
                        await self._look_on_time()
                finally:
                    with anyio.CancelScope(shield=True):
                        await subscription.aclose()
            except* StoreUnavailable as away:
                _log.debug("limits.store_away", logger=LOGGER, message=str(away.exceptions[0]))
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MOST_RETRY_S)

    async def _hear(self, subscription: Subscription) -> None:
        while True:
            if isinstance(decode(await subscription.next()), BRINGS_A_LIMIT):
                self._news.set()

    async def _look_on_time(self) -> None:
        while True:
            self._news = anyio.Event()
            due_s = await self.look()
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
