"""The daemon's standing in its pool: a session of its own, and the offer of this host's GPUs.

Its law: whoever may have lost the offer is offered again: another server, an emptied one, an ended session. Nothing
asks for that on a clock; the answers of scripts that run anyway show it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from gpulockd.client.keeper import Keeper
from gpulockd.client.line import Line
from gpulockd.client.whoami import machine
from gpulockd.daemon import neighbours
from gpulockd.daemon.saying import PoolDefaults
from gpulockd.daemon.standing import (
    Doubt,
    Guarding,
    OfferingSession,
    assert_all,
    defaults_of,
    elsewhere,
    lacks,
    open_after_reboot,
    with_memory,
)
from gpulockd.errors import ConfigError, GpuLockError, StoreUnavailable
from gpulockd.hardware.cards import Cards
from gpulockd.hardware.nvml import NvmlUnavailable
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.publishing import Published, Told
from gpulockd.ledger.store import Store
from gpulockd.ledger.verbs import Call, Terms
from gpulockd.model import Gpu
from gpulockd.settings import Settings

RETRY_S = 0.2
MOST_RETRY_S = 5.0
NVML_RETRY_S = 10.0
GOODBYE_S = 2.0
SAY_TRIES = 10
KNOWN_TRIES = 3
"""How often the guard's word is said again; what was said to an earlier epoch does not count."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Offering:
    """This host's GPUs in its pool. `ready` says whether the offer stands, `trouble` why not."""

    def __init__(
        self,
        session: OfferingSession,
        settings: Settings,
        cards: Cards,
        *,
        guard: Guarding | None = None,
        offerer: str = "",
        folder: str = "",
    ) -> None:
        """:param guard: who lets in on this host, None: nobody does
        :param offerer: who offers, the same over restarts of this daemon
        :param folder: where the guard's socket lies
        """
        self.session = session
        self._guard = guard
        self._offerer = offerer
        self.cards = cards
        self.keeper = Keeper(session)
        self.line = Line(session, self.keeper)
        self.trouble = "the GPUs are not offered yet"
        self.gpus: tuple[Gpu, ...] = ()
        self._guarding = {"guard": {"folder": folder} if guard is not None else {}}
        self._said = PoolDefaults(
            defaults_of(settings) | {"require_guard": settings.gpus.require_guard} | self._guarding
        )
        self._doubt = Doubt(guard)
        self._vouched_run_id: str | None = None
        self._fresh = False
        self._offered_as, self._epoch = ("", ""), ""
        self._changed = anyio.Event()
        self._loop = asyncio.get_running_loop()
        self.on_offered: Callable[[], None] | None = None
        session.on_change = self._look_from_thread
        session.on_anew = guard.doubt if guard is not None else None

    def __repr__(self) -> str:
        return f"<Offering {self.session.pool} {self.trouble or f'{len(self.gpus)} GPUs'}>"

    @property
    def ready(self) -> bool:
        """Whether the present epoch of the store has this host's offer, as far as is known."""
        return not self.trouble

    @property
    def store(self) -> Store:
        """The daemon's command connection."""
        return self.line.store

    def vouch(self, run_id: str | None, *, fresh: bool) -> None:
        """Take what is known of the embedded store.

        :param run_id: the server process that surely lost nothing; None: nobody knows
        :param fresh: nobody can have used the store since this boot began
        """
        self._vouched_run_id, self._fresh = run_id, fresh

    async def store_restarted(self, run_id: str | None) -> None:
        """The embedded store runs again, as `run_id` if it lost nothing: offer at once."""
        self.vouch(run_id, fresh=False)
        await self.offer_again()

    async def offer_again(self) -> None:
        """The cards or the pool's times have changed: offer them anew."""
        self._offered_as = ("", "")
        self._changed.set()

    async def ask(self, call: Call[T]) -> T:
        """Run a script that is nobody's (an operator's, a picture's), and look at its epoch.

        :raises StoreUnavailable: if no answer came within the deadline
        """
        answer = await self.store.ask(call)
        if isinstance(answer, a.Answer) and answer.clock.epoch != self._epoch:
            self._epoch = answer.clock.epoch
            self._changed.set()
        elif isinstance(answer, a.Unopened):
            await self.offer_again()
        return answer

    async def open(self) -> None:
        """Open the session; after a reboot of this host wait until the ledger has ended its earlier offer.

        :raises ElsewhereError: if another host offers this pool
        :raises ConfigError: if the store cannot be used
        :raises StoreUnavailable: if it does not answer
        """
        await open_after_reboot(self.line)

    async def offer(self) -> None:
        """Put the cards at the pool's disposal.

        :raises NvmlUnavailable: if the driver does not answer now
        :raises ElsewhereError: if another host offers this pool
        :raises StoreUnavailable: if the store does not answer
        """
        try:
            gpus = await self.cards.list()
            if self.cards.source == "nvml":
                neighbours.claim(gpu.uuid for gpu in gpus if gpu.uuid)
                await neighbours.outwait(self.store, self.session.pool, self.session.process.boot_id, self._waits)
            answer = await self._offered_as_known([with_memory(gpu) for gpu in gpus])
        except GpuLockError as trouble:
            self.trouble = trouble.message
            raise
        self.gpus, self.trouble, self._fresh = gpus, "", False
        self._epoch = answer.clock.epoch
        self._offered_as = (self.session.id, self._epoch)
        if self.on_offered is not None:
            self.on_offered()
        _log.info(
            "offer.stands", gpus=len(gpus), how=answer.how, frozen_ms=answer.frozen_ms, message=self.cards.describe()
        )
        await self.store.enlist_pool(self.session.pool)  # a store that has lost its data has lost the list, too
        if self.cards.source == "nvml":
            await self.store.enlist_host(self.session.process.boot_id, self.session.pool)

    def _waits(self, why: str) -> None:
        self.trouble = why
        _log.warning("offer.waits_for_pool", message=why)

    async def _offered_as_known(self, gpus: list[Gpu]) -> a.Offered:
        """Offer, and where the pool is frozen say whom the guard has let in, until the present epoch has heard it."""
        guard = self._guard
        if guard is not None and self._vouched_run_id is not None and await lacks(guard, self.session, self.store):
            # A file that loaded whole may still be an older one than the leases that are in.
            self.vouch(None, fresh=False)
        answer = await self._offered(gpus, knows_all=False)
        for _ in range(KNOWN_TRIES):
            if guard is None or answer.frozen_ms == 0 or answer.how == "known_by_guard" or not self._doubt.is_over():
                break
            await assert_all(guard, self.session, self.store)
            answer = await self._offered(gpus, knows_all=True)
        return answer

    async def _offered(self, gpus: list[Gpu], *, knows_all: bool) -> a.Offered:
        session, known_pool = self.session, None
        await self.line.ready()
        for _ in range(4):
            call = partial(
                verbs.offer,
                session.keys,
                session=session.id,
                process=session.process,
                machine=machine(),
                terms=session.terms,
                gpus=gpus,
                complete_run_id=self._vouched_run_id,
                known_pool=known_pool,
                fresh=self._fresh,
                guarded=self._guard is not None,
                knows_all=knows_all,
                highest_token=self._guard.highest_token if self._guard is not None else 0,
                offerer=self._offerer,
            )
            answer = await self._said.offer(session, self.store, call)
            if isinstance(answer, a.Offered):
                self._doubt.heard(answer)
                return answer
            if isinstance(answer, a.Elsewhere):
                raise elsewhere(session.pool, answer)
            if isinstance(answer, a.AskFleet):
                known_pool = await self.store.knows_pool(session.pool)
            else:
                session.is_open = False
                await self.line.ready()
        raise StoreUnavailable(f"the offer in pool {session.pool} was refused as often as it was made")

    async def publish(
        self, defaults: dict[str, Any], *, terms: Terms | None = None, event: tuple[Told, str] | None = None
    ) -> int:
        """Tell the pool's clients what they go by from now on; every later offer says it too. Returns its version.

        :param terms: other times of the pool, which are offered anew
        :param event: what tells of it in the pool's events, and its reason
        :raises StoreUnavailable: if it could not be said now: the next offer says it, without the event
        """
        said = self._said
        said.change({"require_guard": said.tree["require_guard"]} | defaults | self._guarding)
        if terms is not None and terms != self.session.terms:
            self.session.terms = terms
            await self.offer_again()
        for _ in range(SAY_TRIES):
            if self._stands():
                answer = await said.publish(self.session, self.store, event)
                if isinstance(answer, Published):
                    return answer.version
                await self.offer_again()
            await anyio.sleep(RETRY_S)
        raise StoreUnavailable(f"pool {self.session.pool} is not offered now; its next offer says the change")

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Offer again whenever the offer may be lost, until cancelled."""
        task_status.started()
        while True:
            if self._stands() and await self._doubt.outlast(self._changed):
                self._offered_as = ("", "")
            self._changed = anyio.Event()
            if not self._stands():
                await self._offer_until_it_stands()

    def _stands(self) -> bool:
        return self._offered_as == (self.session.id, self._epoch)

    async def _offer_until_it_stands(self) -> None:
        pause_s = RETRY_S
        while True:
            try:
                return await self.offer()
            except StoreUnavailable as away:
                _log.warning("offer.store_away", message=away.message)
            except NvmlUnavailable as away:
                _log.warning("offer.nvml_away", message=away.message)
                pause_s = NVML_RETRY_S
            except ConfigError as refused:
                _log.error("offer.refused", message=refused.message)
                pause_s = NVML_RETRY_S
            with anyio.move_on_after(pause_s):
                await self._changed.wait()
            self._changed = anyio.Event()
            await anyio.sleep(RETRY_S)
            pause_s = min(2 * pause_s, MOST_RETRY_S)

    def _look_from_thread(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._look)
        except RuntimeError:  # the loop is closed, the daemon has ended
            return

    def _look(self) -> None:
        if self.session.clock is not None:
            self._epoch = self.session.clock.epoch
        self._changed.set()

    async def close(self) -> None:
        """Say goodbye: the session ends in the ledger, the offer stays."""
        if self.keeper.started:
            await anyio.to_thread.run_sync(self.keeper.stop, GOODBYE_S)
        await self.line.aclose()
