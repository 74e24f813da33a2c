"""The services of one pool's daemon: made here, tied together here, started in order.

They never import each other; what one needs of another is handed to it here as a plain callable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio
import anyio.abc

from gpulockd.client.published import share_of
from gpulockd.clock import wall_ms
from gpulockd.daemon import recorder, storeload
from gpulockd.daemon.alerts import Alerts
from gpulockd.daemon.canary import Canary
from gpulockd.daemon.cardlooks import CardLooks
from gpulockd.daemon.cardwatch import CardWatch
from gpulockd.daemon.configkept import KeptFile
from gpulockd.daemon.configuring import Configuring
from gpulockd.daemon.driving import Driving
from gpulockd.daemon.enforcer import Enforcer
from gpulockd.daemon.faults import Faults
from gpulockd.daemon.filewatch import FileWatch
from gpulockd.daemon.fleetnews import FleetNews
from gpulockd.daemon.guarding import Guard
from gpulockd.daemon.impact import Impacts
from gpulockd.daemon.inforce import InForce
from gpulockd.daemon.levels import Rules
from gpulockd.daemon.monitor import Monitor
from gpulockd.daemon.news import BROKEN, News
from gpulockd.daemon.offering import Offering
from gpulockd.daemon.overseeing import Overseeing
from gpulockd.daemon.plan import Plan
from gpulockd.daemon.pulse import Pulses
from gpulockd.daemon.rollout import Rollouts
from gpulockd.daemon.sampling import Sampling
from gpulockd.daemon.settling import Settling
from gpulockd.daemon.strangers import Strangers
from gpulockd.daemon.timer import Timer
from gpulockd.daemon.trying import Trying
from gpulockd.daemon.uptake import Event, Uptake, owner_of
from gpulockd.daemon.verifying import Verifying
from gpulockd.ledger import verbs
from gpulockd.ledger.publishing import Told
from gpulockd.ledger.verbs import Call, Terms
from gpulockd.settings import Settings

T = TypeVar("T")


class Feeds(recorder.News, Protocol):
    """The events of the pool for those who read them all: the web's feed."""

    def hear(self, json: bytes) -> None:
        """One has come."""

    def missed(self) -> None:
        """Some may have been missed before now."""

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Read until cancelled."""


class Services:
    """All that watches and acts for one pool, besides the store and the doors."""

    on_ready: Callable[[], None]
    """Called once the daemon has said that it is ready."""

    def __init__(
        self,
        plan: Plan,
        in_force: InForce,
        kept: KeptFile,
        offered: Offering,
        guarding: Guard,
        pulses: Pulses,
        feed: Feeds,
    ) -> None:
        """:param feed: is told all events, and tells the recorder that something has happened
        :param kept: this host's copy of the fleet's configuration
        """
        self._plan = plan
        self.current = in_force.current
        self._offered = offered
        self._guarding = guarding
        self.feed, self.pulses = feed, pulses
        self.keys = offered.session.keys
        current, ask = in_force.current, offered.ask
        deadline_s = current.settings.session.rpc_deadline
        self.cards = self._card_watch()
        self.settling = Settling(guarding, ask, self.keys, current, self.cards.left_on, self._pids_on_cards_of)
        sampling = Sampling(guarding.runs, offered.cards)
        self.monitor = Monitor(self.keys, ask, rules=lambda: Rules.of(current.settings), sample=sampling)
        self.enforcer = Enforcer(
            self.keys,
            ask,
            session=lambda: offered.session.id,
            rules=lambda: Rules.of(current.settings),
            runs=self.monitor.readings,
            press=self.settling.press,
        )
        self.monitor.on_check = partial(self.enforcer.look, full=True)
        self.news = News(offered.session.url, self.keys, deadline_s)
        self.oversees = self._overseeing()
        self.alerts = self._alerts()
        self.configuring = self._configuring(in_force, kept)
        self.trying = Trying(self.configuring, self._ask_any, self._pools, share_of)
        self.impacts = Impacts(self._ask_any, self.keys, lambda: current.settings)
        self.rollouts, self.driving = self._rollout()
        self.fleet_news = FleetNews(offered.session.url, deadline_s)
        self._settling_beats = pulses.add("settling", within_s=60)
        self.timer = Timer(ask, self.keys, pulses.add("timer", within_s=60))
        self._tie()

    def _tie(self) -> None:
        """Let them hear of each other."""
        self.news.tell_whole(self.feed.hear)
        self.news.tell(lambda kind: self.feed.missed() if kind == BROKEN else None)
        for listener in (self.settling.hear, self.enforcer.hear, self.alerts.hear, self.timer.hear):
            self.news.tell(listener)
        self.configuring.listeners.extend((self.trying.wake, lambda _revision: self.driving.hint()))
        self.fleet_news.tell(lambda _word: self.configuring.wake())
        self.fleet_news.tell(lambda _word: self.driving.hint())
        self._guarding.on_change, self._guarding.on_leave = self.settling.wake, self.news.rest
        self._offered.on_offered = self._on_offered
        self.current.tell(self._on_settings)

    async def start(self, group: anyio.abc.TaskGroup) -> None:
        """Start them in `group`, in the order in which they need each other."""
        ask = self._offered.ask
        await group.start(self.news.run)
        await group.start(self._offered.run)
        await group.start(self.configuring.run)
        await group.start(self.fleet_news.run)
        await group.start(self.timer.run)
        await group.start(partial(recorder.run, ask, self.keys, self.feed))
        await group.start(partial(self.settling.run, pulse=self._settling_beats))
        await group.start(self.cards.run)
        await group.start(self.enforcer.run)
        await group.start(self.monitor.run)
        await group.start(self.alerts.run)
        await group.start(self.trying.run)
        await group.start(partial(storeload.run, self._ask_any, self.keys))
        await group.start(self.driving.run)
        if self.configuring.file is not None:
            await group.start(FileWatch(self.configuring.file, self.configuring.file_changed).run)

    def _on_offered(self) -> None:
        self.settling.adopt_again()
        self.configuring.offered_anew()

    def _on_settings(self, _before: Settings, _now: Settings) -> None:
        for service in (self.enforcer, self.monitor, self.cards, self.settling):
            service.wake()
        self.alerts.reconsider()

    async def _ask_any(self, call: Call[T]) -> T:
        """Run a script of any pool or of the fleet: its epoch says nothing about this daemon's offer."""
        return await self._offered.store.ask(call)

    async def _pools(self) -> Collection[str]:
        return {*await self._offered.store.pools(), self._plan.pool}

    def _configuring(self, in_force: InForce, kept: KeptFile) -> Configuring:
        offered, current = self._offered, in_force.current

        async def publish(defaults: dict[str, Any], event: Event | None) -> None:
            settings = current.settings
            terms = Terms.of(settings.session, settings.queue, settings.settle)
            told: tuple[Told, str] | None = None
            if event is not None:
                told = "config_rolled_back" if event[0] == "config_rolled_back" else "config_changed", event[1]
            await offered.publish(defaults, terms=terms, event=told)

        uptake = Uptake(in_force, self._ask_any, publish, kept, owner_of(in_force.layers.file))
        verifying = Verifying(current, offered.ask, self.keys, lambda: offered.session.id)
        return Configuring(in_force, uptake, self._ask_any, pools=self._pools, verify=verifying)

    def _rollout(self) -> tuple[Rollouts, Driving]:
        pool, configuring, current = self.keys.pool, self.configuring, self.current
        canary = Canary(pool, lambda: self._offered.store, share_of)

        async def reaches() -> str:
            if not self.alerts.answered():
                await self.alerts.test_channel()
            cure = "name one under 'notify:' and try it with 'gpulockd alerts test'"
            return "" if self.alerts.answered() else f"no alert channel has answered: {cure}"

        async def abort(why: str) -> None:
            await rollouts.abort(author="gpulockd", reason=why)

        rollouts = Rollouts(
            pool=pool,
            store=lambda: self._offered.store,
            configuring=configuring,
            block=lambda: current.settings.rollout,
            canary=canary,
            reaches=reaches,
        )
        driving = Driving(
            pool=pool,
            store=lambda: self._offered.store,
            configuring=configuring,
            canary=canary,
            abort=abort,
        )
        rollouts.on_word = driving.hint
        configuring.on_way_back = rollouts.given_up
        return rollouts, driving

    def _alerts(self) -> Alerts:
        offered, current = self._offered, self.current
        return Alerts(
            self.keys,
            offered.store.ask,
            settings=lambda: current.settings,
            session=lambda: offered.session.id,
            host=offered.session.process.host,
            monitor=self._monitor_works,
            readings=self.monitor.readings,
            evidence=self.oversees.evidence,
        )

    def _overseeing(self) -> Overseeing:
        guarding = self._guarding
        return Overseeing(
            checks=lambda: self.monitor.checks,
            works=self._monitor_works,
            counts=lambda: self.enforcer.obeying.counts,
            rules=lambda: Rules.of(self.current.settings),
            runs=self.monitor.readings,
            guarded=lambda: guarding.fence.leases,
            members=guarding.runs,
            looks=self.cards.looks,
        )

    def _monitor_works(self) -> bool:
        """Whether the monitor's last check is not long ago, and had a picture."""
        checks, interval_s = self.monitor.checks, self.current.settings.gpu_lock_monitor.monitor_interval
        late = wall_ms() - (checks.last_ms or checks.started_ms) > (3 * interval_s + 30) * 1000
        return not self.monitor.is_running or not (late or checks.last_error)

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
            policy=lambda: self.current.settings.gpus.foreign,
            recovers=lambda: self.current.settings.gpu_lock_monitor.auto_recovery,
            tell=tell,
            reoffer=offered.offer_again,
        )
