"""What a call says, completed by the configuration."""

from __future__ import annotations

import pytest

from gpulockd.client import wishes
from gpulockd.errors import ConfigError
from gpulockd.settings import GpuLockBlock


def test_the_call_goes_over_everything() -> None:
    """An argument is the last word."""
    block = GpuLockBlock(max_wait_time=5.0, poll_interval=0.5)
    patience = wishes.patience_of(block, "10m", None)
    assert (patience.max_wait_s, patience.poll_interval_s) == (600.0, 0.5)
    assert wishes.patience_of(block, None, "2s").poll_interval_s == 2.0
    assert wishes.patience_of(block, None, None).max_wait_s == 5.0


def test_the_times_of_a_pool_that_nobody_has_opened_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """They must fit together as those of a daemon must."""
    monkeypatch.setenv("GPULOCKD_SESSION_TTL", "40s")
    monkeypatch.setenv("GPULOCKD_QUEUE_PRIORITY_STEP", "0")
    monkeypatch.setenv("GPULOCKD_SETTLE_POLICY", "always")
    assert wishes.session_block().ttl == 40.0
    assert (wishes.queue_block().priority_step, wishes.settle_block().policy) == (0.0, "always")
    monkeypatch.setenv("GPULOCKD_SESSION_TTL", "5")
    with pytest.raises(ConfigError, match="set ttl to at least"):
        wishes.session_block()
    monkeypatch.setenv("GPULOCKD_SETTLE_POLICY", "sometimes")
    with pytest.raises(ConfigError, match="GPULOCKD_SETTLE_POLICY: 'sometimes' is none of"):
        wishes.settle_block()


def test_a_call_may_not_say_an_endless_number() -> None:
    """ "9…9h" is infinite in floating point, and no clock counts so far."""
    with pytest.raises(ConfigError, match="not a duration"):
        wishes.patience_of(GpuLockBlock(), "9" * 400 + "h", None)
    for text in ("9" * 60 + "h", "inf", "nan"):
        with pytest.raises(ConfigError, match="300 years"):
            wishes.patience_of(GpuLockBlock(), text, None)
    with pytest.raises(ConfigError, match="300 years"):
        wishes.patience_of(GpuLockBlock(), 10**400, None)


def test_a_limit_is_none_when_it_is_said_and_never_at_once() -> None:
    """A hold that is over as it begins is a slip of the pen; a night's training wants no limit at all."""
    job = wishes.job_of("train", None, None, None, "none", "automatic")
    assert job.hard_timeout_s == wishes.UNLIMITED_S
    for value in (0, "0s", 0.01):
        with pytest.raises(ConfigError, match="or 'none' for no limit"):
            wishes.job_of("train", None, None, None, value, "automatic")
