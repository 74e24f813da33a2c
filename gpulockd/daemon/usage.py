"""For how long a lease's run has used neither CPU nor GPU: pure, from samples in a row.

Its law: what was not seen all the time is not known, and what is not known is never taken for idleness.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from gpulockd.daemon.judging import Reading


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment.

    `cpu_ticks`: all CPU time of its processes (clock ticks), None if they are not all seen. `gpu_busy`: whether any of
    its gpus works, None if a card does not tell. `gone`: the holder's process has ended, None if that is not known.
    """

    cpu_ticks: int | None = None
    gpu_busy: bool | None = None
    gone: bool | None = None


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """The last sample of a run, and since when nothing has happened (seconds on the daemon's clock)."""

    last: Sample
    taken_at_s: float
    idle_since_s: float


def watched(before: Watched | None, sample: Sample, now_s: float) -> Watched:
    """Take one more sample of a run."""
    known = sample.cpu_ticks is not None and sample.gpu_busy is False
    # Ticks may also fall: a process that ends takes its own along, which is work too.
    still = before is not None and known and before.last.cpu_ticks == sample.cpu_ticks and before.last.gpu_busy is False
    return Watched(
        last=sample, taken_at_s=now_s, idle_since_s=before.idle_since_s if still and before is not None else now_s
    )


def reading_of(run: Watched) -> Reading:
    """What the samples say; nothing is said of the time after the last one."""
    known = run.last.cpu_ticks is not None and run.last.gpu_busy is False
    idle_ms = round((run.taken_at_s - run.idle_since_s) * 1000)
    return Reading(idle_ms=idle_ms if known else None, gone=run.last.gone)


def readings_of(runs: Mapping[str, Watched]) -> dict[str, Reading]:
    """The readings of all runs, by lease id."""
    return {id: reading_of(run) for id, run in runs.items()}
