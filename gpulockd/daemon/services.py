"""The services of one pool's daemon: made here, tied together here, started in order.

They never import each other; what one needs of another is handed to it here as a plain callable.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial

import anyio.abc

from gpulockd.daemon import recorder, timer
from gpulockd.daemon.cardlooks import CardLooks
from gpulockd.daemon.cardwatch import CardWatch
from gpulockd.daemon.enforcer import Enforcer
from gpulockd.daemon.faults import Faults
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.levels import Rules
from gpulockd.daemon.monitor import Monitor
from gpulockd.daemon.news import News
from gpulockd.daemon.offering import Offering
from gpulockd.daemon.plan import Plan
from gpulockd.daemon.pulse import Pulses
from gpulockd.daemon.sampling import Sampling
from gpulockd.daemon.settling import Settling
from gpulockd.daemon.strangers import Strangers
from gpulockd.ledger import verbs


class Services:
    """All that watches and acts for one pool, besides the store and the doors."""

    def __init__(self, plan: Plan, offered: Offering, guarding: Guard, pulses: Pulses, feed: recorder.News) -> None:
        """:param feed: tells the recorder that something has happened"""
        self._plan = plan
        self._offered = offered
        self._guarding = guarding
        self._feed = feed
        self.keys = offered.session.keys
        settings, ask = plan.settings, offered.ask
        self.cards = self._card_watch()
        self.settling = Settling(guarding, ask, self.keys, settings, self.cards.left_on, self._pids_on_cards_of)
        sampling = Sampling(guarding.runs, offered.cards)
        self.monitor = Monitor(self.keys, ask, rules=lambda: Rules.of(settings), sample=sampling)
        self.enforcer = Enforcer(
            self.keys,
            ask,
            session=lambda: offered.session.id,
            rules=lambda: Rules.of(settings),
            runs=self.monitor.readings,
            press=self.settling.press,
        )
        self.monitor.on_check = partial(self.enforcer.look, full=True)
        self.news = News(offered.session.url, self.keys, settings.session.rpc_deadline)
        for listener in (self.settling.hear, self.enforcer.hear):
            self.news.tell(listener)
        guarding.on_change = self.settling.wake
        offered.on_offered = self.settling.adopt_again
        self._beats = {
            "settling": pulses.add("settling", within_s=60),
            "timer": pulses.add("timer", within_s=60),
        }

    async def start(self, group: anyio.abc.TaskGroup) -> None:
        """Start them in `group`, in the order in which they need each other."""
        url, ask = self._offered.session.url, self._offered.ask
        deadline_s = self._plan.settings.session.rpc_deadline
        await group.start(self._offered.run)
        await group.start(partial(timer.run, url, self.keys, ask, deadline_s=deadline_s, pulse=self._beats["timer"]))
        await group.start(partial(recorder.run, ask, self.keys, self._feed))
        await group.start(partial(self.settling.run, pulse=self._beats["settling"]))
        await group.start(self.cards.run)
        await group.start(self.enforcer.run)
        await group.start(self.monitor.run)
        await group.start(self.news.run)

    def _pids_on_cards_of(self, lease: str) -> Collection[int]:
        """The pids that the cards of a lease showed at the last look."""
        found = self._guarding.fence.leases.get(lease)
        return [pid for gpu in found.gpus for pid in self.cards.looks.pids_on(gpu)] if found is not None else ()

    def _card_watch(self) -> CardWatch:
        plan, offered, guarding = self._plan, self._offered, self._guarding
        boot_id = offered.session.process.boot_id

        async def tell(gpu: str, who: str) -> None:
            await offered.ask(verbs.report(self.keys, session="", gpu=gpu, state="foreign", reason=who))

        return CardWatch(
            CardLooks(offered.cards, lambda: offered.gpus),
            self.keys,
            offered.ask,
            Strangers(boot_id, guarding.runs.members, guarding.callers.processes),
            faults=Faults(os.path.join(plan.folders.state, "faults.json"), boot_id),
            policy=lambda: plan.settings.gpus.foreign,
            recovers=lambda: plan.settings.gpu_lock_monitor.auto_recovery,
            tell=tell,
            reoffer=offered.offer_again,
        )
