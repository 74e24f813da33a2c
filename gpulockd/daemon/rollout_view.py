"""A rollout as it stands in the store, and as people and programs read it."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.config.gates import tripped
from gpulockd.config.staged import Rollout
from gpulockd.errors import GpuLockError
from gpulockd.ledger.revisions import RolloutRow


def read(row: RolloutRow) -> Rollout | None:
    """Return the rollout of a row; None if it has none.

    :raises GpuLockError: if another version of gpulockd has written it
    """
    if row.state is None:
        return None
    try:
        return msgspec.convert(row.state, Rollout)
    except msgspec.ValidationError as unreadable:
        raise GpuLockError(f"the rollout was written by another version of gpulockd ({unreadable}): update") from None


def is_at_rest(rollout: Rollout | None) -> bool:
    """Whether nothing is to be done for it any more."""
    return rollout is None or (rollout.over and not rollout.untold)


def view(rollout: Rollout, row: RolloutRow, sessions: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return the rollout, ready for JSON; shares and rates of 1, times in seconds.

    :param sessions: how many living worker sessions are in, and how many there are, where those are the unit
    """
    who = rollout.who if sessions is None else f"{sessions[0]} of {sessions[1]} {rollout.who}"
    counted, trip = rollout.counted, tripped(rollout.counted, rollout.limits)
    return {
        "id": rollout.id,
        "phase": rollout.phase,
        "stage": rollout.stage + 1,
        "share": 0.0
        if rollout.phase in ("returning", "returned")
        else 1.0
        if rollout.phase == "done"
        else rollout.now.share,
        "stages": [{"share": stage.share, "hold_s": stage.hold_s} for stage in rollout.stages],
        "held_s": rollout.held_ms(row.elapsed_ms) / 1000,
        "unit": "hosts" if rollout.unit == "pools" else "sessions",
        "pools": list(rollout.pools),
        "below": rollout.below,
        "who": who,
        "sessions_in": None if sessions is None else sessions[0],
        "sessions": None if sessions is None else sessions[1],
        "revision": rollout.base,
        "result": rollout.result,
        "set": rollout.tree,
        "unset": list(rollout.unset),
        "author": rollout.author,
        "reason": rollout.reason,
        "approved_by": rollout.approved_by or None,
        "validated": bool(rollout.validated),
        "attempts": counted.attempts,
        "success_rate": counted.rate(counted.acquired) if counted.attempts else None,
        "failure_rate": counted.rate(counted.failures) if counted.attempts else None,
        "timeout_rate": counted.rate(counted.timed_out) if counted.attempts else None,
        "redis_cpu": counted.cpu[-1] if counted.cpu else None,
        "alerts": list(counted.alerts),
        "missed": counted.missed,
        "gate": trip.text if trip is not None else None,
        "driver": row.driver or None,
        "why": rollout.why or None,
        "text": text_of(rollout, row.elapsed_ms, who),
    }


def text_of(rollout: Rollout, elapsed_ms: int, who: str) -> str:
    """Return one line that says where it is, who is in, and what comes next."""
    stage = f"stage {rollout.stage + 1} of {len(rollout.stages)} ({rollout.now.share:.0%}: {who})"
    held = f"{rollout.held_ms(elapsed_ms) / 1000:.0f} of {rollout.now.hold_s:g} s"
    return {
        "holding": f"{stage} holds, {held}; {rollout.counted}",
        "paused": f"{stage} is paused after {held}; resume or abort it",
        "awaiting": f"{stage} has passed ({rollout.counted}); approve or abort it",
        "finishing": f"all come next, approved by {rollout.approved_by or 'the settings'}",
        "done": f"done: all go by it, revision {rollout.result}",
        "returning": f"goes back: {rollout.why}",
        "returned": f"went back: {rollout.why}",
    }[rollout.phase]
