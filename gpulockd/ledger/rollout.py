"""The row of the staged rollout: its state, opaque here, and who drives it.

One daemon drives at a time. Its right ends after a term in which it did not renew it, counted on a clock of the row's
own that advances by bounded steps of the store's TIME: neither a jump of the clock nor a pause takes it away early, and
no time in which nobody watched counts as watched.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.errors import GpuLockError
from gpulockd.ledger.fleet import Ask, Reply, call, encode, unknown, words


class RolloutRow(msgspec.Struct, frozen=True, kw_only=True):
    """The rollout as the store has it. `elapsed_ms`: time driven so far; `left_ms`: of the driver's term."""

    version: int
    state: dict[str, Any] | None
    driver: str
    elapsed_ms: int
    left_ms: int
    wall_ms: int


class RolloutConflict(msgspec.Struct, frozen=True):
    """Nothing was written: somebody else has written or drives. `row` is what stands."""

    row: RolloutRow


async def read_rollout(ask: Ask) -> RolloutRow:
    """The row as it stands; version 0 and no state before any rollout.

    :raises StoreUnavailable: if no answer came
    """
    return _stood(await ask(call("rollout", "", "", "", read=_row)))


async def write_rollout(
    ask: Ask, *, expected: int, state: dict[str, Any] | None, driver: str = ""
) -> RolloutRow | RolloutConflict:
    """Write the state, if nobody has since version `expected`.

    :param driver: who drives, "" for a person's word, which is taken whoever drives
    :raises StoreUnavailable: if no answer came; the state may have been written
    """
    text = "" if state is None else encode(state)
    found: RolloutRow | RolloutConflict = await ask(call("rollout", str(expected), text, driver, read=_row))
    return found


async def drive(ask: Ask, *, driver: str, term_ms: int) -> RolloutRow:
    """Take the right to drive if it is free, or keep it; `driver` of the answer says who has it now.

    Renew it every third of a term or sooner: time goes on by no more than that at each call.

    :param term_ms: how long it is kept without another call; 0 gives it back
    :raises StoreUnavailable: if no answer came
    """
    if term_ms < 0 or not driver:
        raise ValueError(f"driver {driver!r}, term {term_ms} ms: a driver has a name, and a term is not negative")
    return _stood(await ask(call("drive", driver, str(term_ms), read=_row)))


def _stood(found: RolloutRow | RolloutConflict) -> RolloutRow:
    if isinstance(found, RolloutConflict):
        raise GpuLockError("the ledger answered a conflict to who only looked: update gpulockd")
    return found


def _row(reply: Reply) -> RolloutRow | RolloutConflict:
    word, wall_ms, version, state, driver, elapsed_ms, left_ms = words(reply)
    row = RolloutRow(
        version=int(version),
        state=msgspec.json.decode(state) if state else None,
        driver=driver,
        elapsed_ms=int(elapsed_ms),
        left_ms=int(left_ms),
        wall_ms=int(wall_ms),
    )
    if word == "conflict":
        return RolloutConflict(row)
    if word != "rollout":
        raise unknown(word)
    return row
