"""Who could sit where: the rules of `_gpus.lua` over a snapshot, for forecasts and suspicions, never for decisions.

Only Lua grants. This model knows what a gpu's room is and which gpus a ticket would take; it knows no time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from gpulockd.model import GpuRecord, Snapshot, TicketRecord, Wants


class Seat(msgspec.Struct):
    """One gpu and who sits on it, by id; memory in MiB."""

    key: str
    index: int
    memory_mib: int
    usable: bool
    exclusive: str = ""
    budgets_mib: dict[str, int] = {}

    @property
    def used_mib(self) -> int:
        """The sum of the budgets (in MiB)."""
        return sum(self.budgets_mib.values())

    @property
    def holders(self) -> int:
        """How many sit here."""
        return len(self.budgets_mib) + bool(self.exclusive)

    def suits(self, wants: Wants) -> bool:
        """Could `wants` ever be here?"""
        return self.usable and self.memory_mib >= wants.memory_mib

    def has_room(self, wants: Wants) -> bool:
        """Could `wants` begin here now?"""
        if self.exclusive or not self.suits(wants):
            return False
        if wants.exclusive:
            return not self.budgets_mib
        return self.used_mib + wants.memory_mib <= self.memory_mib


class Seating:
    """The gpus of a pool and who sits on them. A settling gpu counts as free: it soon is."""

    def __init__(self, records: Iterable[GpuRecord]) -> None:
        self._seats: dict[str, Seat] = {}
        self._offered: list[str] = []
        for record in sorted(records, key=lambda record: (record.gpu.index or 0, record.gpu.key)):
            gpu = record.gpu
            usable = record.state in ("ready", "settling")
            self._seats[gpu.key] = Seat(gpu.key, gpu.index or 0, gpu.memory_mib or 0, usable)
            if record.offered:
                self._offered.append(gpu.key)

    @classmethod
    def of(cls, snapshot: Snapshot) -> Seating:
        """Return the seating of a snapshot, holders and claims in their places."""
        seating = cls(snapshot.gpus)
        for lease in holders(snapshot):
            seating.sit(lease.id, Wants.parse(lease.wants), lease.gpus)
        return seating

    def sit(self, id: str, wants: Wants, keys: Iterable[str]) -> None:
        """Put `id` on these gpus."""
        for key in keys:
            seat = self._seat(key)
            if wants.exclusive:
                seat.exclusive = id
            else:
                seat.budgets_mib[id] = wants.memory_mib

    def rise(self, id: str, keys: Iterable[str]) -> None:
        """Take `id` off these gpus."""
        for key in keys:
            seat = self._seat(key)
            seat.budgets_mib.pop(id, None)
            if seat.exclusive == id:
                seat.exclusive = ""

    def find(self, wants: Wants, forbidden: Collection[str] = ()) -> tuple[str, ...] | None:
        """Return the gpus on which `wants` would begin now, None if it must wait."""
        room = [seat for seat in self._candidates(wants) if seat.key not in forbidden and seat.has_room(wants)]
        if len(room) < wants.count:
            return None
        if not wants.exclusive:
            room.sort(key=lambda seat: (-seat.used_mib, seat.index, seat.key))
        elif wants.memory_mib:
            room.sort(key=lambda seat: (seat.memory_mib, seat.index, seat.key))
        return tuple(seat.key for seat in room[: wants.count])

    def choose(self, wants: Wants) -> tuple[str, ...]:
        """Return the gpus that `wants` would keep for itself when it has waited too long; none if it fits nowhere."""
        suited = [seat for seat in self._candidates(wants) if seat.suits(wants)]
        if len(suited) < wants.count:
            return ()
        suited.sort(key=lambda seat: (seat.holders, seat.index, seat.key))
        return tuple(seat.key for seat in suited[: wants.count])

    def could_use(self, wants: Wants) -> frozenset[str]:
        """Return the gpus that could ever be of use to `wants`."""
        return frozenset(seat.key for seat in self._candidates(wants) if seat.suits(wants))

    def _candidates(self, wants: Wants) -> list[Seat]:
        return [self._seat(key) for key in wants.keys or self._offered]

    def _seat(self, key: str) -> Seat:
        """A key without hardware is a slot while somebody wants it."""
        return self._seats.setdefault(key, Seat(key, 0, 0, True))


def holders(snapshot: Snapshot) -> list[TicketRecord]:
    """Return what sits on gpus: leases and claims; members sit where their lease sits."""
    return [lease for lease in snapshot.leases if lease.state != "member"]


def present(snapshot: Snapshot) -> list[TicketRecord]:
    """Return the tickets of the queue's page whose programs listen, in their order."""
    return [ticket for ticket in snapshot.queue if ticket.state == "waiting"]
