"""How the page writes things: ages, moments, sizes, and what happened, each in a few words."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from gpulockd.events import (
    AlertRaised,
    AlertResolved,
    ConfigChanged,
    ConfigRolledBack,
    DaemonStarted,
    DaemonStopped,
    Event,
    ForeignProcessSeen,
    GpuDrained,
    GpuLost,
    GpuQuarantined,
    GpuResumed,
    GpuSettled,
    GpuSettling,
    HeartbeatMissed,
    LockAcquired,
    LockExpired,
    LockReleased,
    LockRequested,
    LockRevoked,
    SessionLost,
    SessionOpened,
    StopRequested,
    TimeoutWarned,
    WaitAbandoned,
    WaitTimedOut,
)
from gpulockd.model import GPU_KEY_PREFIX, Job

DAY_S = 86_400

GLYPHS = {"good": "●", "warn": "▲", "bad": "■", "idle": "○"}
"""The shape that goes with each mood, so that no state is told by its colour alone."""


def age(seconds: float) -> str:
    """Return what was measured, as people read it: "0 s", "0.04 s", "1.8 s", "12 s", "7:08", "2:03:20", "6 d 04 h".

    It is cut, not rounded, as clocks are; the page's script counts on in the same form.
    """
    if seconds < 10:
        return _few(seconds)
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole >= DAY_S:
        return f"{whole // DAY_S} d {whole % DAY_S // 3600:02d} h"
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _few(seconds: float) -> str:
    hundredths = int(100 * seconds + 1e-6)
    if hundredths <= 0:
        return "0 s"
    return f"0.{hundredths:02d} s" if hundredths < 10 else f"{hundredths // 10 / 10:.1f} s"


def short(seconds: float) -> str:
    """Return a length that somebody has set: "5 m", "2 h"; one that is no whole minutes as `age` does."""
    if seconds < 10 and seconds == int(seconds):
        return f"{seconds:.0f} s"
    if seconds < 60 or seconds % 60 or seconds >= DAY_S:
        return age(seconds)
    return f"{seconds / 60:.0f} m" if seconds % 3600 else f"{seconds / 3600:.0f} h"


def clock(at_ms: float, *, seconds: bool = True) -> str:
    """Return a moment (wall clock, ms) as the time of day of this host."""
    return time.strftime("%H:%M:%S" if seconds else "%H:%M", time.localtime(at_ms / 1000))


def iso(at_ms: float) -> str:
    """Return a moment (wall clock, ms) as ISO 8601 in UTC, for `datetime`."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def percent(share: float | None) -> str:
    """Return a share of 1: "71 %"."""
    return "–" if share is None else f"{100 * share:.0f} %"


def gib(mib: float | None) -> str:
    """Return memory (in MiB): "12 GiB"."""
    return "–" if mib is None else f"{mib / 1024:.3g} GiB"


def gpu_name(key: str) -> str:
    """Return a key as people say it: "GPU 0"."""
    number = key.removeprefix(GPU_KEY_PREFIX)
    return f"GPU {number}" if number.isdigit() else key


def gpu_names(keys: tuple[str, ...]) -> str:
    """Return several keys in one: "GPU 0, GPU 2"."""
    return ", ".join(gpu_name(key) for key in keys)


def job_name(job: Job, token: int = 0) -> str:
    """Return what a job is called: its task, and its id unless that only repeats it."""
    return named(job.task, job.task_id or (f"{job.task}#{token}" if token else ""))


def named(task: str, task_id: str) -> str:
    """Return task and id in one, without saying the task twice."""
    task = task or "somebody"
    if not task_id or task_id == task or task_id.startswith(f"{task}#"):
        return task
    return f"{task} {task_id}"


Said = tuple[str, str, str]
"""What happened: the word, its mood ("good", "warn", "bad", or "" for plain) and the rest of the sentence."""


def told(event: Event) -> Said:
    """Return an event as the page lists it."""
    found = _TOLD.get(type(event))
    word, mood, sentence = found if found is not None else (event.kind.replace("_", " "), "", _plain)
    if isinstance(event, AlertRaised) and event.level != "critical":
        mood = "warn"
    return word, mood, sentence(event)


def _plain(event: Event) -> str:
    return " · ".join(part for part in (gpu_names(event.gpus), event.task or "", event.reason or "") if part)


def _granted(event: Event) -> str:
    waited = f" after {age(event.waited_ms / 1000)}" if event.waited_ms else ""
    return f"{gpu_names(event.gpus)} → {_task(event)}{waited}"


def _ended(event: Event) -> str:
    held = f" ({age(event.held_ms / 1000)})" if event.held_ms is not None else ""
    says_more = event.reason and not isinstance(event, LockReleased | TimeoutWarned)
    why = f": {_reason(event)}" if says_more else ""
    return f"{gpu_names(event.gpus)} {_task(event)}{held}{why}"


def _waiter(event: Event) -> str:
    waited = f" after {age(event.waited_ms / 1000)}" if event.waited_ms else ""
    return f"{_task(event)}{waited}"


def _alert(event: Event) -> str:
    assert isinstance(event, AlertRaised | AlertResolved)
    message = event.message or event.reason or ""
    return " · ".join(dict.fromkeys(part for part in (event.rule, _ENGLISH.get(message, ""), message) if part))


def alert_title(rule: str, message: str) -> tuple[str, str]:
    """Return what an alert is called, and what else stands beside it: its message if that is not English."""
    if message.isascii():
        return message or rule, ""
    return _ENGLISH.get(message, rule), message


def _task(event: Event) -> str:
    return named(event.task or "", event.task_id or "")


def _reason(event: Event) -> str:
    return (event.reason or "").replace("_", " ")


_ENGLISH = {
    "GPU锁超时率过高": "Too many waits for a GPU time out",
    "GPU锁成功率过低": "Too few requests get a GPU",
    "检测到GPU死锁": "A deadlock of GPUs was found",
    "GPU锁监控服务异常": "The monitor does not work",
    "心跳失败率过高": "Too many tasks miss their heartbeat",
}
"""What the messages of the documented rules say. The messages themselves stay: logs are searched for them."""

_TOLD: dict[type[Event], tuple[str, str, Callable[[Event], str]]] = {
    LockRequested: ("queued", "", _waiter),
    LockAcquired: ("granted", "good", _granted),
    LockReleased: ("released", "", _ended),
    LockExpired: ("expired", "bad", _ended),
    LockRevoked: ("revoked", "bad", _ended),
    WaitAbandoned: ("left", "", _waiter),
    WaitTimedOut: ("timed out", "warn", _waiter),
    StopRequested: ("stop asked", "warn", _ended),
    TimeoutWarned: ("warning", "warn", _ended),
    HeartbeatMissed: ("silent", "warn", _ended),
    SessionOpened: ("joined", "", _plain),
    SessionLost: ("lost", "bad", _plain),
    GpuSettling: ("settling", "warn", _plain),
    GpuSettled: ("settled", "", _plain),
    GpuDrained: ("drained", "warn", _plain),
    GpuResumed: ("resumed", "", _plain),
    GpuQuarantined: ("quarantine", "bad", _plain),
    GpuLost: ("gpu lost", "bad", _plain),
    ForeignProcessSeen: ("stranger", "warn", _plain),
    ConfigChanged: ("config", "", _plain),
    ConfigRolledBack: ("rolled back", "warn", _plain),
    AlertRaised: ("alert", "bad", _alert),
    AlertResolved: ("resolved", "good", _alert),
    DaemonStarted: ("daemon up", "", _plain),
    DaemonStopped: ("daemon off", "warn", _plain),
}
