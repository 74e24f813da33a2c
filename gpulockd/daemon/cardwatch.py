"""Watches the cards: takes one that fails out of the pool, tells its holder, brings it back when it is well, and names
the processes on it that have no lease.

What must be done is judged in `judge_cards`; this only looks and obeys. It looks on an interval and whenever a card
reports something. The ledger is asked only when a card has something to say, and now and then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio
import anyio.abc
import msgspec
import structlog

from gpulockd.daemon import judge_cards
from gpulockd.daemon.cardlooks import CardLooks
from gpulockd.daemon.faults import Faults
from gpulockd.daemon.judge_cards import CardMemory, EndLeases, Look, Name, Order, Policy, Report, Stranger
from gpulockd.daemon.strangers import Strangers
from gpulockd.errors import StoreUnavailable
from gpulockd.hardware import xids
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.readings import CardTrouble
from gpulockd.ledger import answers as a
from gpulockd.ledger import verbs
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.verbs import Call
from gpulockd.model import Snapshot

LOOK_S = 5.0
"""How often every card is looked at (in seconds)."""

SOON_S = 0.5
"""How soon a card is looked at again of which one look has not shown enough (in seconds)."""

FULL_S = 30.0
"""How often the ledger is asked also when no card has anything to say, and the driver for cards that are new."""

T = TypeVar("T")
Tell = Callable[[str, str], Awaitable[None]]
Reoffer = Callable[[], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Asks(Protocol):
    """Sends a script on the daemon's own connection."""

    async def __call__(self, call: Call[T]) -> T: ...


async def only_logged(gpu: str, who: str) -> None:
    """For a daemon that tells of strangers in its log alone."""


class CardWatch:
    """The service, and `memories`: what it remembers of each card, by UUID.

    :param strangers: finds who is on a card without a lease
    :param faults: keeps what stands against a card over restarts
    :param policy: what is done about strangers
    :param recovers: whether leases may be taken from their holders (`auto_recovery`)
    :param tell: makes an event of a stranger (gpu, who), besides the log
    :param reoffer: offers the cards again: one is there that is not offered
    :param look_s: how often to look (in seconds)
    """

    def __init__(
        self,
        looks: CardLooks,
        keys: PoolKeys,
        ask: Asks,
        strangers: Strangers,
        *,
        faults: Faults | None = None,
        policy: Callable[[], Policy] = lambda: "report",
        recovers: Callable[[], bool] = lambda: True,
        tell: Tell = only_logged,
        reoffer: Reoffer | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self.looks = looks
        self.memories: dict[str, CardMemory] = {}
        self._keys = keys
        self._ask = ask
        self._strangers = strangers
        self._faults = faults or Faults()
        self._policy = policy
        self._recovers = recovers
        self._tell = tell
        self._reoffer = reoffer
        self._look_s = look_s
        self._xids: dict[str, tuple[int, ...]] = {}
        self._news = anyio.Event()
        self._full_at = float("-inf")

    def __repr__(self) -> str:
        faults = sum(bool(memory.fault) for memory in self.memories.values())
        return f"<CardWatch {len(self.looks.looks)} cards, {faults} not well>"

    def fault_of(self, gpu: str) -> str:
        """Return why a gpu (its key) cannot be used, for people; empty if it can."""
        return self._memory_of(gpu).fault

    def strangers_on(self, gpu: str) -> tuple[Stranger, ...]:
        """Return the processes without a lease on a gpu (its key), seen twice."""
        return self._memory_of(gpu).strangers

    async def left_on(self, gpu: str, run: frozenset[Process]) -> str:
        """Return what keeps a gpu (its key) from its next holder, for people; empty if nothing does.

        :param run: the processes of the lease before; where strangers are waited for, they count as well
        """
        left = await self.looks.left_on(gpu, run)
        if not left and self._policy() == "wait":
            left = "; ".join(str(stranger) for stranger in self.strangers_on(gpu))
        return left

    def _memory_of(self, gpu: str) -> CardMemory:
        return self.memories.get(self.looks.uuid_of(gpu) or "", CardMemory())

    def wake(self) -> None:
        """Look soon."""
        self._news.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look and obey until cancelled."""
        await self._faults.read()
        for uuid, xid in self._faults.xids.items():
            self.memories[uuid] = CardMemory(xid=xid, fault=xids.says(xid), final=True, out=True)
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.looks.cards.watch, self._hear)
            task_status.started()
            while True:
                self._news = anyio.Event()
                try:
                    await self.look()
                except StoreUnavailable as away:
                    _log.debug("cards.store_away", message=away.message)
                with anyio.move_on_after(SOON_S if self._must_look_again() else self._look_s):
                    await self._news.wait()

    def _hear(self, trouble: CardTrouble) -> None:
        said = xids.says(trouble.code) if trouble.kind == "xid" else f"its driver reports: {trouble.kind}"
        _log.warning("cards.reported", uuid=trouble.uuid, xid=trouble.code, message=f"{trouble.uuid}: {said}")
        if trouble.kind == "xid":
            self._xids[trouble.uuid] = (*self._xids.get(trouble.uuid, ()), trouble.code)
        self._news.set()

    def _must_look_again(self) -> bool:
        return any(
            (memory.clean < judge_cards.CLEAN_LOOKS and bool(memory.out or memory.xid))
            or 0 < memory.hung < judge_cards.HANGING_LOOKS
            or len(memory.glimpsed) > len(memory.strangers)
            for memory in self.memories.values()
        )

    async def look(self) -> None:
        """Look at every card once, judge and obey.

        :raises StoreUnavailable: if the store does not answer
        """
        full = anyio.current_time() >= self._full_at + FULL_S
        if full:
            await self.looks.find_cards(self._reoffer)
        looks = await self.looks.take()
        if full or self._xids or any(self._has_news(uuid, look) for uuid, look in looks.items()):
            # After the looks: whoever has come meanwhile has a lease in it, and is not taken for a stranger.
            answer = await self._ask(verbs.snapshot(self._keys))
            if isinstance(answer, a.Pictured) and answer.snapshot.frozen_ms == 0:
                await self._judge_all(looks, answer.snapshot)
        if full:
            self._full_at = anyio.current_time()

    def _has_news(self, uuid: str, look: Look) -> bool:
        """Whether the ledger must be looked at: a card that is well and empty, and was so, has nothing to say."""
        memory = self.memories.get(uuid, CardMemory())
        shown = any(process.kind != "graphics" for process in look.processes or ())
        well = look.reading is not None and look.reading.recovery in (None, "none")
        hidden = bool(judge_cards.hidden_mib(look))
        return memory != CardMemory(clean=memory.clean) or shown or hidden or not (well or look.unknown)

    async def _judge_all(self, looks: dict[str, Look], snapshot: Snapshot) -> None:
        strangers = await self._strangers_in(looks, snapshot)
        states = {record.gpu.uuid: record for record in snapshot.gpus if record.offered and record.gpu.uuid in looks}
        # All is remembered before anything is done: an order that fails must not cost what a card has reported once.
        reported, self._xids = self._xids, {}
        for uuid in (str(uuid) for uuid in states):
            found = strangers.get(uuid, ())
            if not any(states[uuid].gpu.key in lease.gpus for lease in snapshot.leases):
                found += judge_cards.hidden(looks[uuid])
            look = msgspec.structs.replace(looks[uuid], strangers=found)
            memory = judge_cards.met(states[uuid].state, self.memories.get(uuid, CardMemory()))
            self.memories[uuid] = judge_cards.remember(memory, look, reported.get(uuid, ()))
        for uuid, record in ((str(uuid), record) for uuid, record in states.items()):
            orders = judge_cards.judge(record.state, self.memories[uuid], self._policy())
            for order in orders:
                await self._obey(record.gpu.key, order, snapshot)
            self.memories[uuid] = judge_cards.after(self.memories[uuid], orders)
        await self._faults.write({uuid: memory.xid for uuid, memory in self.memories.items() if memory.xid})

    async def _strangers_in(self, looks: dict[str, Look], snapshot: Snapshot) -> dict[str, tuple[Stranger, ...]]:
        if self._policy() == "ignore":
            return {}
        try:
            return await self._strangers.find(
                snapshot, {uuid: look.processes for uuid, look in looks.items() if look.processes}
            )
        except TimeoutError:
            _log.warning("cards.proc_away", message="/proc does not answer: who is on the cards is not known")
            return {}

    async def _obey(self, gpu: str, order: Order, snapshot: Snapshot) -> None:
        if isinstance(order, Report):
            log = _log.info if order.state in ("ready", "settled") else _log.error
            log(f"cards.{order.state}", gpu=gpu, message=f"{gpu}: {order.reason}")
            await self._ask(verbs.report(self._keys, session="", gpu=gpu, state=order.state, reason=order.reason))
        elif isinstance(order, EndLeases):
            await self._end_leases(gpu, order.reason, snapshot)
        elif isinstance(order, Name):
            who = str(order.stranger)
            _log.warning("cards.stranger", gpu=gpu, message=f"{gpu}: {who} is on it without a lease")
            await self._tell(gpu, who)

    async def _end_leases(self, gpu: str, why: str, snapshot: Snapshot) -> None:
        """Tell those on a failed card by ending their leases; where nothing may be recovered, they are left alone."""
        for lease in snapshot.leases:
            if gpu in lease.gpus and lease.state in ("held", "claim") and self._recovers():
                _log.warning("cards.lease_ended", gpu=gpu, lease=lease.id, message=f"{gpu} has failed: {why}")
                await self._ask(verbs.end(self._keys, session="", id=lease.id, token=lease.token, reason="gpu_lost"))
