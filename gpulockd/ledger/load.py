"""How busy the server and the gpus of a pool were: measured by whoever asks, kept by the minute beside the statistics.

| key | type | what |
|---|---|---|
| `recorded` field `load` | text | the last measurement: wall clock (ms), the server's CPU time (ms), its run id |
| `recorded:load:<hour>` | hash, 14 days | minute "0" ... "59" and `all` -> `Load` |

Its law: each moment is measured once, by whichever daemon; one that nobody measured is in no sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from gpulockd.ledger import answers as a
from gpulockd.ledger import reading
from gpulockd.ledger.keys import PoolKeys
from gpulockd.ledger.lua_files import script
from gpulockd.ledger.recorded import DAY_MS, KEPT_DAYS, UnreadableError
from gpulockd.ledger.verbs import Call


class Load(msgspec.Struct, array_like=True):
    """Sums in ms: the time that was measured, the server's CPU time in it, gpus × time, and busy gpus × time.

    `most_permille`: the highest CPU load of a measurement, in thousandths of a core.
    """

    measured_ms: int = 0
    cpu_ms: int = 0
    gpu_ms: int = 0
    busy_ms: int = 0
    most_permille: int = 0

    def take_in(self, other: Load) -> None:
        """Add what `other` has measured."""
        self.measured_ms += other.measured_ms
        self.cpu_ms += other.cpu_ms
        self.gpu_ms += other.gpu_ms
        self.busy_ms += other.busy_ms
        self.most_permille = max(self.most_permille, other.most_permille)

    @property
    def redis_cpu(self) -> float | None:
        """The CPU time of the server as a share of one core; None if it was not measured."""
        return self.cpu_ms / self.measured_ms if self.measured_ms else None

    @property
    def redis_cpu_most(self) -> float | None:
        """The highest share of one core in a measurement; None if there was none."""
        return self.most_permille / 1000 if self.measured_ms else None

    @property
    def busy_share(self) -> float | None:
        """The share of gpus × time in which somebody held the gpu; None if no gpu was offered."""
        return self.busy_ms / self.gpu_ms if self.gpu_ms else None


class Sampled(a.Answer, frozen=True, kw_only=True):
    """The last `took_ms` are measured; 0: it was too soon, or measuring has begun anew."""

    wall_ms: int
    took_ms: int


def load(
    keys: PoolKeys, *, least_ms: int, most_ms: int, kept_ms: int = KEPT_DAYS * DAY_MS
) -> Call[Sampled | a.Unopened]:
    """Measure what was since the last measurement.

    :param least_ms: asked again sooner than that, it measures nothing
    :param most_ms: of a longer time nothing is known, and measuring begins anew
    """
    return Call(script("load"), keys, ("", str(least_ms), str(most_ms), str(kept_ms)), _sampled)


def load_name(hour: int) -> str:
    """The key's name behind `recorded` of an hour since 1970."""
    return f":load:{hour}"


_decoder = msgspec.json.Decoder(Load)


def read_loads(fields: dict[str, bytes]) -> dict[str, Load]:
    """Return what an hour has, by minute.

    :raises UnreadableError: if another version of gpulockd has written it
    """
    try:
        return {field: _decoder.decode(value) for field, value in fields.items()}
    except msgspec.DecodeError as unreadable:
        raise UnreadableError(f"{UnreadableError.__doc__} ({unreadable})") from unreadable


def summed_load(loads: Iterable[Load]) -> Load:
    """Return the sum."""
    total = Load()
    for one in loads:
        total.take_in(one)
    return total


def _sampled(reply: list[Any]) -> Sampled | a.Unopened:
    if reply[0] == b"unopened":
        return a.NO_BOOKS
    clock, now_ms = reading._terms(reply)
    return Sampled(clock=clock, now_ms=now_ms, wall_ms=int(reply[6]), took_ms=int(reply[7]))
