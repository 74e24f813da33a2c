"""What cards say: readings, the processes on them, and their troubles. All are frozen values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

ProcessKind = Literal["compute", "graphics", "mps"]
TroubleKind = Literal["xid", "recovery", "unavailable"]


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sample of a card: memory in MiB, utilization 0 to 1, °C and W; None is what this card does not tell.

    `at_ms` is this host's wall clock, for printing. `reserved_mib` is what the driver keeps for itself; it is part of
    neither `used_mib` nor `free_mib`, and None on a driver that counts it as used. `recovery` names what the driver
    says the card needs ("none", "gpu_reset", "node_reboot", ...).
    """

    uuid: str
    at_ms: int
    total_mib: int | None = None
    used_mib: int | None = None
    free_mib: int | None = None
    reserved_mib: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    recovery: str | None = None


class CardProcess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that has a context on a card: pid as this daemon sees it, memory in MiB or None if not told."""

    pid: int
    kind: ProcessKind = "compute"
    used_mib: int | None = None


class CardTrouble(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a driver reports of a card by itself: an XID, that it is unavailable, or that its need of recovery changed.

    `code` is the XID. Nothing is kept from before the watching began.
    """

    uuid: str
    kind: TroubleKind
    code: int = 0


Tell = Callable[[CardTrouble], None]
"""Is told of each trouble, in the event loop."""
