"""Do the settings fit together? Each value alone is looked at in `checks`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec

from gpulockd.errors import ConfigError
from gpulockd.settings.blocks import GpuLockBlock, MonitorBlock, SessionBlock, TimeoutLevels
from gpulockd.settings.checks import checked
from gpulockd.settings.overrides import PROFILES, ProfileBlock, TaskBlock
from gpulockd.settings.trees import Tree, merged
from gpulockd.settings.values import wrong
from gpulockd.settings.whole import Settings

_LEVELS = "gpu_lock_monitor.timeout_levels"


def settings_from(data: Tree) -> Settings:
    """Return the settings that a parsed config.yml says; what it leaves out has its default.

    :raises ConfigError: for an unknown key, a wrong value, or values that do not fit together; `path` says where
    """
    return fitted(checked(data))


def fitted(tree: Tree) -> Settings:
    """Return the settings of a tree that was checked.

    :raises ConfigError: for values that do not fit together; `path` and `involved` say which
    """
    try:
        settings = msgspec.convert(merged({"profiles": msgspec.to_builtins(PROFILES)}, tree), Settings)
    except msgspec.ValidationError as refused:
        raise ConfigError(f"config: {refused}") from None
    for trouble in _troubles(settings):
        raise trouble
    return settings


def _troubles(settings: Settings) -> Iterator[ConfigError]:
    yield from _session(settings.session)
    yield from _gpu_lock(settings.gpu_lock)
    yield from _lock_timeouts(settings)
    yield from _monitor(settings.gpu_lock_monitor)
    levels = settings.gpu_lock_monitor.timeout_levels
    for name, task in settings.tasks.items():
        yield from _task(f"tasks.{name}", task, settings.gpu_lock, levels)
    for name, profile in settings.profiles.items():
        yield from _profile(f"profiles.{name}", profile)
    if settings.gpus.require_guard and not settings.gpus.guard:
        text = "it needs gpus.guard: with guard false nobody could ever begin"
        yield wrong("gpus.require_guard", text, "gpus.guard")
    shares = [share for share, _ in settings.rollout.stages]
    if shares != sorted(set(shares)) or any(share == 0 for share in shares):
        yield wrong("rollout.stages", "the share of each stage must be larger than that of the one before, and than 0")
    names = [rule.name for rule in settings.alerts.rules]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield wrong("alerts.rules", f"two rules have the name {name!r}; give each its own")


def _longer(path: str, value_s: float, than: str, other_s: float) -> ConfigError:
    text = f"{value_s:g} s is longer than the {other_s:g} s of {than}; set one of them so that it is not"
    return wrong(path, text, than)


def _session(session: SessionBlock) -> Iterator[ConfigError]:
    least_s = session.step_s + 2 * session.rpc_deadline + session.keepalive + session.margin
    if least_s > session.ttl:
        text = (
            f"{session.ttl:g} s is too short for keepalive {session.keepalive:g} s, rpc_deadline "
            f"{session.rpc_deadline:g} s and margin {session.margin:g} s; set ttl to at least {least_s:g} s"
        )
        yield wrong("session.ttl", text, "session.keepalive", "session.rpc_deadline", "session.margin")
    if session.claim_window > session.ttl:
        yield _longer("session.claim_window", session.claim_window, "session.ttl", session.ttl)


def check_session(session: SessionBlock) -> None:
    """Refuse session times under which a living process could lose its lease to one clock step.

    :raises ConfigError: unless step + 2 * rpc_deadline + keepalive + margin <= ttl
    """
    for trouble in _session(session):
        raise trouble


def _gpu_lock(block: GpuLockBlock) -> Iterator[ConfigError]:
    if block.poll_interval > block.max_poll_interval:
        yield _longer(
            "gpu_lock.poll_interval", block.poll_interval, "gpu_lock.max_poll_interval", block.max_poll_interval
        )


def _lock_timeouts(settings: Settings) -> Iterator[ConfigError]:
    """A holder gives a sign of life every keepalive, and may be late: it must not lose its gpu for that."""
    said = {"gpu_lock.lock_timeout": settings.gpu_lock.lock_timeout}
    said |= {f"tasks.{name}.lock_timeout": task.lock_timeout or math.inf for name, task in settings.tasks.items()}
    said |= {f"profiles.{name}.lock_timeout": one.lock_timeout or math.inf for name, one in settings.profiles.items()}
    for path, value_s in said.items():
        if value_s < settings.session.ttl:
            text = (
                f"{value_s:g} s is shorter than the {settings.session.ttl:g} s of session.ttl, so a healthy program "
                f"could lose its gpu; set at least {settings.session.ttl:g} s"
            )
            yield wrong(path, text, "session.ttl")


def _profile(here: str, profile: ProfileBlock) -> Iterator[ConfigError]:
    least, most = profile.poll_interval, profile.max_poll_interval
    if least is not None and most is not None and least > most:
        yield _longer(f"{here}.poll_interval", least, f"{here}.max_poll_interval", most)


def _monitor(block: MonitorBlock) -> Iterator[ConfigError]:
    levels = block.timeout_levels
    if not levels.warning <= levels.soft_timeout <= levels.hard_timeout:
        paths = [f"{_LEVELS}.{name}" for name in ("warning", "soft_timeout", "hard_timeout")]
        yield wrong(_LEVELS, out_of_order(msgspec.to_builtins(levels)), *paths)
    if block.heartbeat.interval >= block.heartbeat.timeout:
        text = "it must be shorter than timeout, or each task counts as stalled between two heartbeats"
        yield wrong("gpu_lock_monitor.heartbeat.interval", text, "gpu_lock_monitor.heartbeat.timeout")


def out_of_order(limits_s: Mapping[str, float | None]) -> str:
    """Why limits do not fit together (in seconds; None: not said), with what they are."""
    said = ", ".join(f"{name} {limit_s:g} s" for name, limit_s in limits_s.items() if limit_s is not None)
    return f"it must hold that warning <= soft_timeout <= hard_timeout, and here are {said}"


def _task(here: str, task: TaskBlock, usual: GpuLockBlock, levels: TimeoutLevels) -> Iterator[ConfigError]:
    if task.poll_interval is not None and task.poll_interval > usual.max_poll_interval:
        yield _longer(
            f"{here}.poll_interval", task.poll_interval, "gpu_lock.max_poll_interval", usual.max_poll_interval
        )
    said = {"warning": task.warning, "soft_timeout": task.soft_timeout, "hard_timeout": task.hard_timeout}
    given = [value for value in said.values() if value is not None]
    if given != sorted(given):
        paths = [f"{here}.{name}" for name, value in said.items() if value is not None]
        yield wrong(here, out_of_order(said), *paths)
    elif task.warning is not None and task.soft_timeout is None:
        stretch = (task.hard_timeout or levels.hard_timeout) / levels.hard_timeout
        soft_s = min(levels.soft_timeout * max(1.0, stretch), task.hard_timeout or levels.hard_timeout)
        if task.warning > soft_s:
            text = f"{task.warning:g} s is after the soft_timeout of {soft_s:g} s that the task has; set that too"
            yield wrong(f"{here}.warning", text, f"{_LEVELS}.soft_timeout", f"{_LEVELS}.hard_timeout")
