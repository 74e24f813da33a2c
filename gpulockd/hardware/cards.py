"""The door to this host's GPUs: ask for cards here and use whichever source answers."""

from __future__ import annotations

from typing import Literal, Protocol

from gpulockd.errors import ConfigError
from gpulockd.hardware.nvml import NvmlCards, NvmlUnavailable
from gpulockd.hardware.simulated import SimulatedCards
from gpulockd.model import Gpu

DEFAULT_SIMULATED = 2
MOST_SIMULATED = 64


class Cards(Protocol):
    """The GPUs that one host offers."""

    @property
    def source(self) -> Literal["nvml", "simulated"]:
        """Where the cards come from."""

    async def list(self) -> tuple[Gpu, ...]:
        """Return the GPUs in index order; a MIG instance is a GPU of its own.

        :raises NvmlUnavailable: if the driver does not answer now
        """

    def describe(self) -> str:
        """Return one sentence for people: what was found and, for simulated cards, why."""


async def open_cards(simulate: int | None, pool: str = "default") -> Cards:
    """Return this host's cards.

    :param simulate: None = real cards, or two simulated ones on a host without any; 0 = real cards or none;
        N = N simulated cards
    :param pool: the pool's name, from which simulated cards take their UUIDs
    :raises ConfigError: if `simulate` is not 0 to 64
    """
    if simulate is not None and not 0 <= simulate <= MOST_SIMULATED:
        raise ConfigError(f"gpus.simulate: {simulate} is not possible; simulate 0 to {MOST_SIMULATED} GPUs")
    if simulate:
        return SimulatedCards(pool, simulate, why="as configured")
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
    return SimulatedCards(pool, DEFAULT_SIMULATED, why=why, cure="use --simulate 0 to turn off")
