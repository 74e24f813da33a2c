"""How a daemon puts its gpus at the pool's disposal, as the product's `offering.py` has it."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.daemon.assertions import GuardsWord
from gpulockd.daemon.guarding import Guard
from gpulockd.ledger.verbs import BroughtLease
from tests.faults.simulator.session import Member
from tests.faults.simulator.site import Site
from tests.faults.simulator.store import TERMS, TIMES, Facts
from tests.faults.simulator.world import Away, Coroutine, Signal

IDLE_ROUND_S = 3.0
"""Between two looks of a daemon while nothing is under way."""


class Offering(Member):
    """A member that offers the gpus of its host, with its guard's word."""

    guard: Guard
    word: GuardsWord

    def __init__(self, site: Site, number: int) -> None:
        super().__init__(site.host, f"daemon{site.pool}/{number}", site.store, site.pool)
        self.site = site
        self.offers = Signal()
        self._offered: tuple[str, Any] = ("", None)
        self._freezes_until = 0.0
        self._epoch: Any = None
        self._epoch_began = 0.0

    def heard(self, asked_at: float, facts: Facts) -> None:
        """As every member; a new epoch or session offers anew."""
        super().heard(asked_at, facts)
        if (self.session, facts.epoch) != self._offered:
            self.offers.kick()

    def offering(self) -> Coroutine:
        """Offer again whenever the pool has begun anew, until this daemon ends."""
        while True:
            self.offers.clear()
            try:
                epoch = self.facts.epoch if self.facts else None
                doubts = self.clock() < self._freezes_until and self._is_sure()
                if self._offered != (self.session, epoch) or doubts:
                    yield from self._offer()
                pause_s = 0.5 if self.clock() < self._freezes_until else IDLE_ROUND_S
            except Away:
                pause_s = 0.2
            yield self.offers.within(pause_s)

    def _offer(self) -> Coroutine:
        yield from self.ready()
        said = yield from self._offer_once(knows_all=False)
        for _ in range(3):
            if said[2] == 0 or said[1] == "known_by_guard" or not self._is_sure():
                break
            yield from self._assert_all()
            said = yield from self._offer_once(knows_all=True)

    def _offer_once(self, *, knows_all: bool) -> Coroutine:
        words = {
            "boot_id": self.host.name,
            "machine": self.host.name,
            "terms": TERMS,
            "gpus": self.site.gpus,
            "complete": None,
            "fresh": False,
            "known": True,
            "guarded": True,
            "knows_all": knows_all,
            "highest_token": 0 if self.world.bug == "token_reset" else self.word.highest_token,
            "offerer": "daemon",
        }
        said, _ = yield from self.ask("offer", self.session, words)
        if said[0] != "offered" or self.facts is None:
            self.is_open = False
            raise Away
        if self._epoch is None and said[1] == "never_used":
            self.word.began_alone()
        if self.facts.epoch != self._epoch:
            self._epoch, self._epoch_began = self.facts.epoch, self.clock()
        waits = said[2] > 0 and said[1] not in ("never_used", "known_by_guard")
        self._freezes_until = self.clock() + said[2] / 1000 if waits else 0.0
        self._offered = self.session, self.facts.epoch
        return said

    def _is_sure(self) -> bool:
        after_ttl = self._epoch is not None and self.clock() >= self._epoch_began + TIMES.ttl
        return self.word.knows_all(after_ttl=after_ttl)

    def _assert_all(self) -> Coroutine:
        """Say each lease that is in for its session, as `assertions.py` has it: its own process may be stopped."""
        for lease in list(self.guard.fence.leases.values()):
            if lease.lost or lease.holder.state != "in" or not lease.assertion:
                continue
            words = msgspec.convert(lease.assertion, BroughtLease)
            words.age_ms = max(0, round(self.clock() * 1000) - lease.began_ms)
            words.id, words.token, words.gpus = lease.id, lease.token, lease.gpus
            host, session = self.host.name, lease.holder.session
            yield self.store.ask(self, self.pool, "open", session, host, TERMS, True, [], [words], 0, host)
