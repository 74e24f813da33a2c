"""What must be done about a card: pure, from what it says now, what is remembered of it, and its state in the ledger.

Its law: one look proves nothing good. A card that failed comes back after two clean ones, a stranger counts when it is
seen twice, a card hangs when it has hung twice; a driver that does not answer says nothing about any card.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

import msgspec

from gpulockd.hardware import xids
from gpulockd.hardware.processes.identity import Process
from gpulockd.hardware.readings import CardProcess, Reading
from gpulockd.model import GpuState

CLEAN_LOOKS = 2
HANGING_LOOKS = 2

Policy = Literal["ignore", "report", "wait"]

_NEEDS = {
    "gpu_reset": "it needs a reset",
    "drain_and_reset": "it needs a reset",
    "bus_reset": "it needs a reset of its bus",
    "node_reboot": "its host must be rebooted",
    "system_reboot": "its host must be rebooted",
    "recover_imex_domain": "its IMEX domain must be recovered",
}
"""Recovery actions without which a card cannot be used; any other than these leaves it usable."""

_HIDDEN_MIB = 1024
"""From how much memory in use by nobody visible it is somebody's (in MiB); drivers and displays use some."""


class Stranger(msgspec.Struct, frozen=True):
    """A process on a card that is of no lease; `name` is for people: "python train.py (pid 4711, user alice)"."""

    process: Process
    name: str
    used_mib: int | None = None

    def __str__(self) -> str:
        return self.name if self.used_mib is None else f"{self.name}, {self.used_mib} MiB"


_NOBODY = Process(0, 0)
_UNSEEN = "something that this daemon cannot see (run it with the host's pids)"


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at a card has shown.

    `lost`: its driver says that this card is lost, and why. `missing`: the driver has no such card, and why: devices
    may be hidden from this daemon alone. `unknown`: the driver does not answer at all. `processes` None: not known.
    """

    reading: Reading | None = None
    processes: tuple[CardProcess, ...] | None = None
    strangers: tuple[Stranger, ...] = ()
    lost: str = ""
    missing: str = ""
    hangs: bool = False
    unknown: str = ""


class CardMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a card between looks.

    `fault`: why it is not usable; `final`: what runs on it cannot go on. `xid`: a fatal one that stands; `was_away`:
    the card was lost since, so it was reset. `out`: the fault was reported. `held_back`: strangers keep it from the
    next holder. `strangers` were seen twice, `glimpsed` once.
    """

    fault: str = ""
    final: bool = False
    xid: int = 0
    was_away: bool = False
    clean: int = 0
    hung: int = 0
    out: bool = False
    held_back: bool = False
    strangers: tuple[Stranger, ...] = ()
    glimpsed: frozenset[Process] = frozenset()
    named: frozenset[Process] = frozenset()


class Report(msgspec.Struct, frozen=True):
    """Say to the ledger how a gpu is."""

    state: Literal["ready", "settled", "quarantined", "lost"]
    reason: str


class EndLeases(msgspec.Struct, frozen=True):
    """Take the leases from their holders that are on this card: what runs there cannot go on."""

    reason: str


class Name(msgspec.Struct, frozen=True):
    """Tell of a stranger, once."""

    stranger: Stranger


Order = Report | EndLeases | Name


def remember(memory: CardMemory, look: Look, reported_xids: Collection[int] = ()) -> CardMemory:
    """Return what is known of a card after one more look and the XIDs that came before it."""
    fatal = [xid for xid in reported_xids if xids.is_fatal(xid)]
    if fatal:
        memory = msgspec.structs.replace(memory, xid=fatal[-1], was_away=False, clean=0)
    if look.unknown:
        return msgspec.structs.replace(memory, **_fault(memory, look))
    needs = _NEEDS.get((look.reading.recovery if look.reading else None) or "")
    well = look.reading is not None and not needs
    clean, was_away = (memory.clean + 1 if well else 0), memory.was_away or bool(look.lost or look.missing)
    memory = msgspec.structs.replace(
        memory, clean=clean, hung=memory.hung + 1 if look.hangs else 0, was_away=was_away and bool(memory.xid)
    )
    # A driver that tells what the card needs is believed. Of another only a card that was away was surely reset.
    cured = was_away or (look.reading is not None and look.reading.recovery == "none")
    if memory.xid and cured and clean >= CLEAN_LOOKS:
        memory = msgspec.structs.replace(memory, xid=0, was_away=False)
    seen = frozenset(stranger.process for stranger in look.strangers)
    return msgspec.structs.replace(
        memory,
        **_fault(memory, look, needs or ""),
        strangers=tuple(stranger for stranger in look.strangers if stranger.process in memory.glimpsed),
        glimpsed=seen,
        named=memory.named & seen,
    )


def _fault(memory: CardMemory, look: Look, needs: str = "") -> dict[str, str | bool]:
    if look.lost:
        return {"fault": look.lost, "final": True}
    if needs:
        return {"fault": f"{xids.says(memory.xid)}; {needs}" if memory.xid else needs, "final": True}
    if memory.xid:
        return {"fault": xids.says(memory.xid), "final": True}
    if memory.hung >= HANGING_LOOKS:
        return {"fault": "it does not answer its driver", "final": False}
    if look.missing:
        return {"fault": look.missing, "final": False}
    # While it is unclear, what was known stays.
    return (
        {"fault": memory.fault, "final": memory.final} if look.unknown or look.hangs else {"fault": "", "final": False}
    )


def met(state: GpuState, memory: CardMemory) -> CardMemory:
    """Return what is remembered of a card that the ledger has in this state.

    One that was out and is not any more was resumed by command: somebody has seen to its XID.
    """
    if state == "lost":
        return msgspec.structs.replace(memory, out=True)
    return msgspec.structs.replace(memory, xid=0, fault="", final=False, out=False) if memory.out else memory


def judge(state: GpuState, memory: CardMemory, policy: Policy) -> tuple[Order, ...]:
    """Return what must be done about a card in this state. A drained one stays drained, whatever it says."""
    return tuple(_orders(state, memory, policy))


def _orders(state: GpuState, memory: CardMemory, policy: Policy) -> Iterator[Order]:
    if memory.fault:
        if state not in ("lost", "drained"):
            yield Report("lost", memory.fault)
        if memory.final:
            yield EndLeases(memory.fault)
        return
    if state == "lost" and memory.clean >= CLEAN_LOOKS:
        yield Report("ready", "the card answers again and is well")
        return
    if policy == "ignore":
        return
    for stranger in memory.strangers:
        if stranger.process not in memory.named:
            yield Name(stranger)
    if policy == "wait":
        if memory.strangers and state == "ready":
            yield Report("quarantined", "; ".join(str(stranger) for stranger in memory.strangers))
        elif not memory.strangers and memory.held_back and state == "quarantined":
            yield Report("settled", "the processes without a lease are gone")


def after(memory: CardMemory, orders: Collection[Order]) -> CardMemory:
    """Return what is remembered when these orders were carried out."""
    for order in orders:
        if isinstance(order, Report):
            memory = msgspec.structs.replace(memory, out=order.state == "lost", held_back=order.state == "quarantined")
        elif isinstance(order, Name):
            memory = msgspec.structs.replace(memory, named=memory.named | {order.stranger.process})
    return memory


def hidden(look: Look) -> tuple[Stranger, ...]:
    """Return what uses a card's memory unseen, as one stranger without a pid; nothing if there is no such thing."""
    mib = hidden_mib(look)
    return (Stranger(_NOBODY, _UNSEEN, mib),) if mib else ()


def hidden_mib(look: Look) -> int:
    """Return how much memory is in use by processes that the driver does not show (in MiB), 0 if that is unclear.

    So it looks from a container without the host's pid namespace. A driver that counts its own reserve as used, or
    does not tell what each process uses, leaves it unclear.
    """
    reading, processes = look.reading, look.processes
    if reading is None or reading.used_mib is None or reading.reserved_mib is None or processes is None:
        return 0
    if any(process.used_mib is None for process in processes):
        return 0
    rest = reading.used_mib - sum(process.used_mib or 0 for process in processes)
    return rest if rest >= _HIDDEN_MIB else 0
