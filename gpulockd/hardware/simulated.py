"""GPUs that do not exist, for trying, testing and hosts without a card."""

from __future__ import annotations

import uuid
from typing import Literal

from gpulockd.model import GPU_KEY_PREFIX, Gpu

MEMORY_MIB = 24576
_NAMESPACE = uuid.UUID("6d1f5c1e-1f0b-5b0a-9d0c-6770756c6f63")


class SimulatedCards:
    """`count` simulated cards of `memory_mib` MiB each, with the same UUIDs at every start of the same pool."""

    source: Literal["simulated"] = "simulated"

    def __init__(
        self, pool: str, count: int, *, memory_mib: int = MEMORY_MIB, why: str = "as configured", cure: str = ""
    ) -> None:
        self._why = why
        self._cure = cure
        self._gpus = tuple(_card(pool, index, memory_mib) for index in range(count))

    async def list(self) -> tuple[Gpu, ...]:
        """Return the simulated GPUs in index order."""
        return self._gpus

    def describe(self) -> str:
        """Return one sentence: why these are simulated, how many, and how to turn it off."""
        count = len(self._gpus)
        sentence = f"{self._why}: simulating {count} GPU{'' if count == 1 else 's'}"
        return f"{sentence}; {self._cure}" if self._cure else sentence

    def __repr__(self) -> str:
        return f"<SimulatedCards {len(self._gpus)}>"


def _card(pool: str, index: int, memory_mib: int) -> Gpu:
    return Gpu(
        key=f"{GPU_KEY_PREFIX}{index}",
        index=index,
        uuid=f"GPU-{uuid.uuid5(_NAMESPACE, f'{pool}/{index}')}",
        name="Simulated GPU",
        memory_mib=memory_mib,
    )
