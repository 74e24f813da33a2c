"""The cards that NVIDIA's driver knows (NVML), each asked in a thread of its own, with a deadline.

A call into a hung driver never returns. It costs its card one thread and every further question about that card an
error at once; other cards, the event loop and the end of the process are not held up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import anyio
import anyio.abc
import msgspec

from gpulockd.hardware import questions, troubles
from gpulockd.hardware.library import QUIET_WITHIN_S, Library
from gpulockd.hardware.nvml_events import listen
from gpulockd.hardware.readings import CardProcess, Reading, Tell
from gpulockd.hardware.troubles import CardHangs as CardHangs
from gpulockd.hardware.troubles import CardLost as CardLost
from gpulockd.hardware.troubles import NvmlUnavailable as NvmlUnavailable
from gpulockd.hardware.workers import HangsError, Worker
from gpulockd.model import GPU_KEY_PREFIX, Gpu

CALL_DEADLINE_S = 10.0
"""How long a question about all cards may take (in seconds); the first one after boot loads the driver."""

CARD_DEADLINE_S = 5.0
"""How long a question about one card may take (in seconds)."""

_MOST_CARDS = 256

Refusals = list[NvmlUnavailable]

T = TypeVar("T")


class NvmlCards:
    """The cards that the NVIDIA driver knows, MIG instances as GPUs of their own."""

    source: Literal["nvml"] = "nvml"

    def __init__(self, deadline_s: float = CALL_DEADLINE_S, card_deadline_s: float = CARD_DEADLINE_S) -> None:
        """:param deadline_s: for questions about all cards; `card_deadline_s` for those about one (in seconds)"""
        self._deadline_s = deadline_s
        self._card_deadline_s = card_deadline_s
        self._library = Library()
        self._driver = Worker("nvml")
        self._workers: dict[str, Worker] = {}
        self._known: dict[str, Gpu] = {}
        self._state = "not asked yet"

    async def list(self) -> tuple[Gpu, ...]:
        """Return the cards in NVML's order (PCI bus); a lost card leaves a hole in the numbers.

        :raises NvmlUnavailable: if the driver does not answer; the next call tries anew
        """
        try:
            gpus, driver = await self._all_listed()
        except NvmlUnavailable as trouble:
            self._state = f"{trouble.why}; {trouble.cure}"
            raise
        self._state = f"{len(gpus)} GPU{'' if len(gpus) == 1 else 's'} (NVIDIA driver {driver})"
        return gpus

    async def _all_listed(self) -> tuple[tuple[Gpu, ...], str]:
        def ask(nvml: Any) -> tuple[dict[int, str], str]:
            return questions.enumerate_cards(nvml, self._library.handles), questions.driver(nvml)

        try:
            uuids, driver = await self._call(self._driver, ask, self._deadline_s)
        except NvmlUnavailable as trouble:
            if trouble.code != troubles.MISMATCH:
                raise
            # The modules in the kernel are new, the library in this process is old; the one on the disk may fit.
            await self.reopen()
            uuids, driver = await self._call(self._driver, ask, self._deadline_s)
        refused: Refusals = []
        async with anyio.create_task_group() as tasks:
            for index, uuid in uuids.items():
                tasks.start_soon(self._learn, index, uuid, refused)
        if refused:
            raise refused[0]
        return tuple(self._known[uuid] for uuid in uuids.values() if uuid in self._known), driver

    async def _learn(self, index: int, uuid: str, refused: Refusals) -> None:
        """Note what a card is, once; one that hangs or is lost is not there yet, and does not hide the others."""
        known = self._known.get(uuid)
        if known is None:
            try:
                self._known[uuid] = await self._of_card(
                    uuid, lambda nvml, handle: questions.describe(nvml, uuid, handle, index)
                )
            except (CardLost, CardHangs):
                return
            except NvmlUnavailable as trouble:
                refused.append(trouble)
        elif known.index != index:
            self._known[uuid] = msgspec.structs.replace(known, index=index, key=f"{GPU_KEY_PREFIX}{index}")

    async def read(self, uuid: str) -> Reading:
        """Return a sample of one card.

        :raises CardLost: if the driver says that this card is lost, needs a reset, or is not there
        :raises CardHangs: if it does not answer within the deadline
        :raises NvmlUnavailable: if the driver does not answer at all
        """
        return await self._of_card(uuid, lambda nvml, handle: questions.read(nvml, uuid, handle))

    async def processes(self, uuid: str) -> tuple[CardProcess, ...]:
        """Return the processes that are on one card now, by pid.

        Seen from a container without the host's pid namespace, the list is empty although memory is in use.

        :raises ProcessesUnknown: if this driver does not tell, so that nobody takes an empty list for an empty card
        :raises CardLost: and the others, as `read`
        """
        return await self._of_card(uuid, questions.processes)

    async def look(self, uuid: str) -> tuple[Reading, tuple[CardProcess, ...] | None]:
        """Return both at once; None for processes of which the driver does not tell.

        :raises CardLost: and the others, as `read`
        """
        return await self._of_card(uuid, partial(questions.look, uuid=uuid))

    async def watch(self, tell: Tell, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Call `tell` in the event loop for each trouble that the driver reports, until cancelled."""
        await listen(self._library, tell, task_status=task_status)

    async def reopen(self) -> None:
        """Begin anew with the driver, with the library that lies on the disk: after an upgrade, or for a lost card.

        :raises NvmlUnavailable: if a call hangs, so that the library cannot be exchanged under it
        """
        await _answered(self._driver, self._library.reopen, QUIET_WITHIN_S + self._deadline_s)

    def describe(self) -> str:
        """Return one sentence: the number of GPUs and the driver, or why there are none and the cure."""
        return self._state

    def close(self) -> None:
        """Let the threads end. A thread that hangs in the driver does not keep the process from ending."""
        for worker in (self._driver, *self._workers.values()):
            worker.close()

    def __repr__(self) -> str:
        return f"<NvmlCards {self._state}>"

    async def _of_card(self, uuid: str, question: Callable[[Any, Any], T]) -> T:
        if uuid not in self._workers and len(self._workers) >= _MOST_CARDS:
            raise troubles.lost(uuid, troubles.NOT_FOUND, "not found")
        worker = self._workers.setdefault(uuid, Worker(f"nvml-{uuid[:12]}"))

        def ask(nvml: Any) -> T:
            return question(nvml, questions.find(nvml, uuid, self._library.handles))

        return await self._call(worker, ask, self._card_deadline_s, uuid)

    async def _call(self, worker: Worker, function: Callable[[Any], T], deadline_s: float, uuid: str = "") -> T:
        """Run `function(pynvml)` in a thread: the one funnel through which all of NVML goes."""
        return await _answered(worker, partial(self._library.call, function, uuid), deadline_s)


async def _answered(worker: Worker, call: Callable[[], T], deadline_s: float) -> T:
    try:
        return await worker.do(call, deadline_s)
    except HangsError as trouble:
        how = "still hangs in an earlier call" if trouble.again else f"has not answered for {deadline_s:g} s"
        raise troubles.unanswered(how) from None
