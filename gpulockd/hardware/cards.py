"""The door to this host's GPUs: ask for cards here and use whichever source answers."""

from __future__ import annotations

from typing import Literal, Protocol

import anyio.abc

from gpulockd.errors import ConfigError
from gpulockd.hardware.nvml import NvmlCards
from gpulockd.hardware.readings import CardProcess, Reading, Tell
from gpulockd.hardware.simulated import SimulatedCards
from gpulockd.hardware.troubles import NvmlUnavailable
from gpulockd.model import Gpu

DEFAULT_SIMULATED = 2
MOST_SIMULATED = 64


class Cards(Protocol):
    """The GPUs that one host offers, and what is on them. A GPU is named by its UUID, never by its place."""

    @property
    def source(self) -> Literal["nvml", "simulated"]:
        """Where the cards come from."""

    async def list(self) -> tuple[Gpu, ...]:
        """Return the GPUs in index order; a MIG instance is a GPU of its own.

        :raises NvmlUnavailable: if the driver does not answer now
        """

    async def read(self, uuid: str) -> Reading:
        """Return a sample of one card.

        :raises CardLost: if this card is lost, needs a reset, or is not there
        :raises CardHangs: if it does not answer within its deadline
        :raises NvmlUnavailable: if the driver does not answer at all
        """

    async def processes(self, uuid: str) -> tuple[CardProcess, ...]:
        """Return the processes on one card now, by pid.

        :raises ProcessesUnknown: if the driver does not tell
        :raises CardLost: and the others, as `read`
        """

    async def look(self, uuid: str) -> tuple[Reading, tuple[CardProcess, ...] | None]:
        """Return both at once; None for processes of which the driver does not tell.

        :raises CardLost: and the others, as `read`
        """

    async def watch(self, tell: Tell, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Call `tell` for each trouble that a card reports by itself, until cancelled."""

    async def reopen(self) -> None:
        """Begin anew with the driver: after its upgrade, or to see whether a lost card is back.

        :raises NvmlUnavailable: if that cannot be done now
        """

    def describe(self) -> str:
        """Return one sentence for people: what was found and, for simulated cards, why."""

    def close(self) -> None:
        """Let the threads end."""


async def open_cards(simulate: int | None, pool: str = "default", folder: str | None = None) -> Cards:
    """Return this host's cards.

    :param simulate: None = real cards, or two simulated ones on a host without any; 0 = real cards or none;
        N = N simulated cards
    :param pool: the pool's name, from which simulated cards take their UUIDs
    :param folder: where programs say that they are on a simulated card (`simulated.occupy`)
    :raises ConfigError: if `simulate` is not 0 to 64
    """
    if simulate is not None and not 0 <= simulate <= MOST_SIMULATED:
        raise ConfigError(f"gpus.simulate: {simulate} is not possible; simulate 0 to {MOST_SIMULATED} GPUs")
    if simulate:
        return SimulatedCards(pool, simulate, folder=folder, why="as configured")
    cards = NvmlCards()
    try:
        found = await cards.list()
    except NvmlUnavailable as trouble:
        # Only a host that has no driver gets simulated cards by itself: on a GPU host with a broken driver they
        # would replace the real ones in the pool, and jobs would start on GPUs that do not exist.
        if simulate == 0 or not trouble.absent:
            return cards
        why = trouble.why
    else:
        if found or simulate == 0:
            return cards
        why = "the NVIDIA driver knows no GPU"
    cards.close()
    return SimulatedCards(pool, DEFAULT_SIMULATED, folder=folder, why=why, cure="use --simulate 0 to turn off")
