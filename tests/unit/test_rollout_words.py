"""How a rollout reads on a terminal."""

from __future__ import annotations

from typing import Any

from gpulockd.cli.configuring.rollout import _next, _seen

LIMITS: dict[str, Any] = {
    "success_rate": 0.95, "failure_rate": 0.1, "timeout_rate": 0.05, "redis_cpu": 0.8, "least_samples": 20,
    "require_approval": True,
}  # fmt: skip


def state(**other: Any) -> dict[str, Any]:
    """A rollout in its first stage of two."""
    stages = [{"share": 0.1, "hold_s": 3600.0}, {"share": 0.5, "hold_s": 7200.0}]
    usual = {"phase": "holding", "stage": 1, "stages": stages, "held_s": 600.0, "attempts": 40, "redis_cpu": None}
    return usual | {"success_rate": 0.97, "timeout_rate": 0.03, "failure_rate": 0.03} | other


def test_rates_stand_beside_their_gates() -> None:
    """A number without its limit says nothing."""
    assert _seen(state(), LIMITS) == (
        "40 attempts: 97.0% got the lock (at least 95%), 3.0% timed out (below 5%), "
        "3.0% failed or timed out (below 10%)"
    )
    assert "20 are needed" in _seen(state(attempts=0), LIMITS)
    assert "5 attempts, 20 are needed to judge" in _seen(state(attempts=5), LIMITS)


def test_it_says_what_comes_next_and_when() -> None:
    """Whoever looks wants to know whether to stay."""
    assert _next(state(), LIMITS) == "in 50:00, if all gates stay open: stage 2 of 2: 50% for 2:00:00"
    assert _next(state(stage=2), LIMITS).endswith("your approval")
    assert "approve" in _next(state(phase="awaiting"), LIMITS)
