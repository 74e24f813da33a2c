"""Handlers of the rollout: begin one, see it, approve, pause, resume or abort it."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.units import parse_duration_s
from gpulockd.web.assigning import wanted
from gpulockd.web.config_views import ConfigChange
from gpulockd.web.configures import RollsOut
from gpulockd.web.configuring import author_of, check_operator, commanded, configures, reason_of
from gpulockd.web.problems import refusal
from gpulockd.web.secrets import hidden
from gpulockd.web.table import Visit

MOST_STAGES = 20

Answer = dict[str, Any]
"""What `RolloutView` says, made by the rollout service."""


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of the fleet (0.1, or "10%"), and how long it must run well before the next (seconds, or "24h")."""

    share: float | str
    hold: float | str


class RolloutWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change that goes to the fleet in stages; without `stages` in those of the configuration."""

    set: dict[str, Any] = {}
    assign: dict[str, str] = {}
    unset: tuple[str, ...] = ()
    profile: str | None = None
    stages: tuple[Stage, ...] = ()
    reason: str = ""
    unvalidated: bool = False


class Steer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why."""

    reason: str = ""


class StageState(msgspec.Struct, frozen=True, kw_only=True):
    """A share of the fleet, and how long it must run well (in seconds)."""

    share: float
    hold_s: float


class RolloutState(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as it stands: rates and shares of 1, times in seconds; `text` says it in one line.

    `pools` and `who`: who goes by the candidate now; `gate`: which one is tripped; `why`: what it went back for;
    `result`: the revision that it has become. `sessions_in` of the `sessions` that live go by the candidate now, where
    sessions are the unit; null: hosts are.
    """

    id: str
    phase: str
    text: str
    stage: int
    stages: tuple[StageState, ...]
    share: float
    held_s: float
    unit: str
    pools: tuple[str, ...]
    below: float
    who: str
    sessions_in: int | None
    sessions: int | None
    revision: int
    result: int | None
    set: dict[str, Any]
    unset: tuple[str, ...]
    author: str
    reason: str
    approved_by: str | None
    validated: bool
    attempts: int
    success_rate: float | None
    failure_rate: float | None
    timeout_rate: float | None
    redis_cpu: float | None
    alerts: tuple[str, ...]
    missed: int
    gate: str | None
    driver: str | None
    why: str | None


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """The rollout under way or the last one; `rollout` null: there was none."""

    rollout: RolloutState | None


async def show_rollout(visit: Visit) -> Answer:
    """The rollout under way, or the last one."""
    return _view(await _rollouts(visit).state())


async def start_rollout(visit: Visit) -> Answer:
    """Bring a change to the fleet in stages.

    :raises ProblemError: 403 for other users, 422 for what no setting takes, 409 if one is under way or not validated
    """
    check_operator(visit.caller)
    wish: RolloutWish = visit.body
    found = _rollouts(visit)
    change = ConfigChange(set=wish.set, assign=wish.assign, unset=wish.unset, profile=wish.profile)
    wished = wanted(change, configures(visit).settings, commanded(configures(visit)))
    said = await found.start(
        wished.tree,
        unset=wished.unset,
        stages=_stages(wish.stages),
        author=author_of(visit),
        reason=reason_of(wish.reason),
        unvalidated=wish.unvalidated,
    )
    return _view(said)


async def approve_rollout(visit: Visit) -> Answer:
    """Let the rollout take the step that waits for approval."""
    return await _steered(visit, "approve")


async def pause_rollout(visit: Visit) -> Answer:
    """Let the rollout stand where it is."""
    return await _steered(visit, "pause")


async def resume_rollout(visit: Visit) -> Answer:
    """Let a paused rollout go on."""
    return await _steered(visit, "resume")


async def abort_rollout(visit: Visit) -> Answer:
    """Take the candidate back everywhere."""
    return await _steered(visit, "abort")


async def _steered(visit: Visit, verb: str) -> Answer:
    check_operator(visit.caller)
    steer: Steer = visit.body
    act = getattr(_rollouts(visit), verb)
    return _view(await act(author=author_of(visit), reason=reason_of(steer.reason)))


def _rollouts(visit: Visit) -> RollsOut:
    found = visit.backend.rollouts
    if found is None:
        raise refusal(503, "not_ready", "the rollout service does not run yet", "ask again in a moment")
    return found


def _view(said: dict[str, Any] | None) -> Answer:
    return {"rollout": None if said is None else hidden("", said)}


def _stages(stages: tuple[Stage, ...]) -> tuple[tuple[float, float], ...] | None:
    """Return the stages as numbers.

    :raises ProblemError: 422 unless the shares grow and lie between 0 and 1
    """
    if not stages:
        return None
    found = tuple((_share(stage.share), parse_duration_s(stage.hold, "stages.hold")) for stage in stages)
    shares = [share for share, _ in found]
    if len(shares) > MOST_STAGES or sorted(set(shares)) != shares or not 0 < shares[0] <= shares[-1] <= 1:
        raise refusal(422, "invalid", f"stages: {shares}", "shares grow from one stage to the next, over 0 and up to 1")
    return found


def _share(said: float | str) -> float:
    text = str(said).strip()
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise refusal(422, "invalid", f"stages.share: {text[:40]!r}", "say a share such as 0.1 or '10%'") from None
