"""The last looks at this host's cards: what they said, what was on them, and what others ask of them between looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import anyio
import structlog

from gpulockd.daemon.judge_cards import Look
from gpulockd.errors import GpuLockError
from gpulockd.hardware.cards import Cards
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.readings import CardProcess, Reading
from gpulockd.hardware.troubles import (
    GPU_NOT_FOUND,
    NOT_FOUND,
    CardHangs,
    CardLost,
    NvmlUnavailable,
)
from gpulockd.model import Gpu

KEPT_READINGS = 120

AGAIN_S = 0.05
"""After how long an empty card is looked at again before it counts as empty (in seconds); lists of processes lag."""

_log = structlog.get_logger(__name__)


class CardLooks:
    """What the cards said lately, by UUID: `looks` the last time, `history` the last 120 readings that came.

    `trouble` says why the driver does not answer, empty if it does; `taken` counts the looks.

    :param gpus: what is offered now
    """

    def __init__(self, cards: Cards, gpus: Callable[[], Sequence[Gpu]]) -> None:
        self.cards = cards
        self.gpus = gpus
        self.history: dict[str, deque[Reading]] = {}
        self.looks: dict[str, Look] = {}
        self.trouble = ""
        self.taken = 0

    def __repr__(self) -> str:
        return f"<CardLooks {len(self.looks)} cards>"

    async def take(self) -> dict[str, Look]:
        """Look at every card now, all at once; one that hangs costs its deadline and holds up nobody twice."""
        looks: dict[str, Look] = {}
        async with anyio.create_task_group() as tasks:
            for gpu in self.gpus():
                if gpu.uuid is not None:
                    tasks.start_soon(self._look_at, gpu.uuid, looks)
        self._note_driver(looks)
        self.looks = looks
        self.taken += 1
        return looks

    async def _look_at(self, uuid: str, looks: dict[str, Look]) -> None:
        try:
            reading, processes = await self.cards.look(uuid)
            self.history.setdefault(uuid, deque(maxlen=KEPT_READINGS)).append(reading)
            looks[uuid] = Look(reading=reading, processes=processes)
        except CardLost as trouble:
            absent = trouble.code in (NOT_FOUND, GPU_NOT_FOUND)
            looks[uuid] = Look(missing=trouble.why) if absent else Look(lost=trouble.why)
        except CardHangs:
            looks[uuid] = Look(hangs=True)
        except NvmlUnavailable as trouble:
            looks[uuid] = Look(unknown=trouble.message)

    def _note_driver(self, looks: dict[str, Look]) -> None:
        said = next((look.unknown for look in looks.values() if look.unknown), "")
        if said != self.trouble:
            self.trouble = said
            _log.warning(
                "cards.driver_away" if said else "cards.driver_back", message=said or "the driver answers again"
            )

    async def find_cards(self, reoffer: Callable[[], Awaitable[None]] | None) -> None:
        """Begin anew with a driver that has trouble; offer again if there is a card that is not offered.

        :param reoffer: offers the cards anew
        """
        try:
            if self.trouble or any(look.lost or look.missing for look in self.looks.values()):
                await self.cards.reopen()
            there = await self.cards.list()
        except NvmlUnavailable as away:
            _log.debug("cards.not_listed", message=away.message)
            return
        if reoffer is not None and {gpu.uuid for gpu in there} - {gpu.uuid for gpu in self.gpus()}:
            try:
                await reoffer()
            except GpuLockError as refused:
                _log.warning("cards.not_offered", message=refused.message)

    # What others ask.

    async def occupants(self, uuid: str) -> tuple[CardProcess, ...]:
        """Return the processes on a card now.

        :raises NvmlUnavailable: if that cannot be known: `ProcessesUnknown`, `CardLost`, `CardHangs` or the driver's
        """
        return await self.cards.processes(uuid)

    async def free_mib(self, uuid: str) -> int | None:
        """Return the free memory of a card now (in MiB); None if it has none of its own.

        :raises NvmlUnavailable: if that cannot be known
        """
        return (await self.cards.read(uuid)).free_mib

    async def left_on(self, gpu: str, run: frozenset[Process]) -> str:
        """Return what of a run is still on a gpu (its key), for people; empty if nothing is, seen twice.

        :param run: the processes of the lease before
        """
        uuid, pids = self.uuid_of(gpu), {process.pid for process in run}
        if uuid is None:
            return ""
        for pause_s in (0.0, AGAIN_S) if pids else (0.0,):  # of an empty run nothing can come late
            await anyio.sleep(pause_s)
            try:
                left = [f"pid {process.pid}" for process in await self.occupants(uuid) if process.pid in pids]
            except (CardLost, CardHangs) as trouble:
                return trouble.why
            except NvmlUnavailable:
                return ""  # nothing can be known; that the run's processes have ended must do
            if left:
                return ", ".join(left)
        return ""

    def pids_on(self, gpu: str) -> tuple[int, ...]:
        """Return the pids that a gpu (its key) showed at the last look."""
        look = self.looks.get(self.uuid_of(gpu) or "")
        return tuple(process.pid for process in (look.processes or () if look else ()))

    def uuid_of(self, gpu: str) -> str | None:
        """Return the UUID of an offered gpu by its key."""
        return next((one.uuid for one in self.gpus() if one.key == gpu), None)
