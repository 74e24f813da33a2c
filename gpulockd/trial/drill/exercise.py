"""Runs a drill: one fault after the other, each measured; what is left of one that went wrong is not built upon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from gpulockd.cli.talk import CommandError, paint, table
from gpulockd.errors import GpuLockError
from gpulockd.trial.drill.faults import Fault, Faults
from gpulockd.trial.drill.site import Site
from gpulockd.trial.drill.terms import Terms

PROGRAMS = 4


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """How a fault ended. `took_s`: None if it was not measured; `limit_s`: with slack; `note`: what went wrong."""

    fault: str
    promise: str
    limit_s: float
    took_s: float | None
    ok: bool
    note: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A drill. `troubles`: what the witnesses have seen; `untried`: faults that were not done any more."""

    measured: tuple[Measured, ...]
    troubles: tuple[str, ...]
    untried: tuple[str, ...]
    took_s: float
    folder: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.troubles and not self.untried and all(one.ok for one in self.measured)


async def exercise(
    terms: Terms, *, keep: bool = False, plant: bool = False, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Do all faults on a private site, and say how it went.

    :param keep: leave the folder with the daemon's log
    :param plant: break the first promise on purpose, and try no other
    :param say: told how far it is
    :raises TrialBroke: if the site could not be started
    """
    began_s = time.monotonic()
    measured: list[Measured] = []
    site = Site(terms.tree, keep=keep)
    async with site:
        say("starting a private daemon and its programs")
        await site.begin(PROGRAMS)
        faults = Faults(site, terms, plant=plant).all()[: 1 if plant else None]
        for fault in faults:
            say(fault.name)
            one, goes_on = await _measured(fault, terms.slack)
            measured.append(one)
            if not goes_on:
                break
    return Report(
        measured=tuple(measured),
        troubles=tuple(site.troubles),
        untried=tuple(fault.name for fault in faults[len(measured) :]),
        took_s=round(time.monotonic() - began_s, 1),
        folder=str(site.folder) if keep else None,
    )


async def _measured(fault: Fault, slack_s: float) -> tuple[Measured, bool]:
    """Do a fault; and whether the next one can be done after it."""
    limit_s = round(fault.limit_s + slack_s, 3)
    try:
        took_s = await fault.do()
    except (GpuLockError, CommandError, OSError) as wrong:
        note = wrong.what if isinstance(wrong, CommandError) else str(wrong)
        none = Measured(fault=fault.name, promise=fault.promise, limit_s=limit_s, took_s=None, ok=False, note=note)
        return none, False
    ok = took_s <= limit_s
    note = "" if ok else f"{took_s - limit_s:.1f} s too late"
    took_s = round(took_s, 3)
    one = Measured(fault=fault.name, promise=fault.promise, limit_s=limit_s, took_s=took_s, ok=ok, note=note)
    return one, True


def text_of(report: Report) -> str:
    """The report as a table."""
    rows = [
        (
            one.fault,
            f"{one.promise} (≤ {one.limit_s:g} s)",
            "-" if one.took_s is None else f"{one.took_s:.3f} s",
            "ok" if one.ok else f"NOT KEPT: {one.note}",
        )
        for one in report.measured
    ]
    rows += [(name, "", "-", "not tried") for name in report.untried]
    colours = ["green" if one.ok else "red" for one in report.measured] + ["yellow"] * len(report.untried)
    lines = [table(("FAULT", "PROMISE", "MEASURED", "OK"), rows, colours)]
    lines += [paint(f"witness: {trouble}", "red") for trouble in report.troubles]
    kept = sum(1 for one in report.measured if one.ok)
    whole = len(report.measured) + len(report.untried)
    lines.append(
        f"{kept} of {whole} promises kept, never two at once on a card"
        if not report.troubles
        else f"{kept} of {whole} kept"
    )
    if report.folder:
        lines.append(f"kept: {report.folder}")
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON has it."""
    return {**msgspec.to_builtins(report), "ok": report.ok}
