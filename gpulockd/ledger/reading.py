"""Replies of the scripts, read into typed answers. A word nobody knows is a broken contract and raises."""

from __future__ import annotations

from typing import Any

import msgspec

from gpulockd.errors import GpuLockError
from gpulockd.ledger import answers as a
from gpulockd.ledger.picture import gpu_of, snapshot_of
from gpulockd.model import Gpu, PoolClock

Reply = list[Any]
RequestAnswer = (
    a.Granted | a.Joined | a.Waiting | a.Busy | a.Gone | a.Late | a.Impossible | a.Deadlock | a.NoSession | a.Unopened
)


def text(raw: Any) -> str:
    """A bulk reply as text."""
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)


def _gpus(told: list[bytes]) -> tuple[Gpu, ...]:
    return tuple([gpu_of(words) for words in told])


_clock_cache: dict[tuple[bytes, bytes, bytes, bytes], PoolClock] = {}


def _terms(reply: Reply) -> tuple[PoolClock, int]:
    words = (reply[1], reply[2], reply[3], reply[4])
    clock = _clock_cache.get(words)
    if clock is None:
        if len(_clock_cache) > 256:
            _clock_cache.clear()
        epoch, version, *guarded = text(reply[1]).split(" ")
        clock = PoolClock(
            epoch=epoch,
            version=int(version.removeprefix("v")),
            ttl_ms=int(reply[2]),
            step_ms=int(reply[3]),
            keepalive_ms=int(reply[4]),
            guarded="guarded" in guarded,
        )
        _clock_cache[words] = clock
    return clock, int(reply[5])


def _unknown(word: bytes) -> GpuLockError:
    return GpuLockError(f"the ledger answered {text(word)!r}, which this version of gpulockd does not know: update it")


def _granted(reply: Reply) -> a.Granted:
    clock, now_ms = _terms(reply)
    return a.Granted(clock=clock, now_ms=now_ms, token=int(reply[6]), waited_ms=int(reply[7]), gpus=_gpus(reply[8]))


def _plain(word: bytes, reply: Reply) -> Any:
    """Answers that several verbs give."""
    if word == b"unopened":
        return a.NO_BOOKS
    if word == b"fleet?":
        return a.ASK_FLEET
    clock, now_ms = _terms(reply)
    if word == b"no_session":
        return a.NoSession(clock=clock, now_ms=now_ms)
    if word == b"gone":
        return a.Gone(clock=clock, now_ms=now_ms, reason=text(reply[6]))
    if word == b"stale":
        return a.Stale(clock=clock, now_ms=now_ms, token=int(reply[6]))
    if word in (b"elsewhere", b"offered_elsewhere"):
        return a.Elsewhere(clock=clock, now_ms=now_ms, host=text(reply[6]), boot_id=text(reply[7]))
    raise _unknown(word)


def requested(reply: Reply) -> RequestAnswer:
    """Read what `request` answered."""
    word = reply[0]
    if word == b"granted":
        return _granted(reply)
    if word == b"waiting":
        clock, now_ms = _terms(reply)
        return a.Waiting(
            clock=clock,
            now_ms=now_ms,
            place=int(reply[6]),
            queued=int(reply[7]),
            frozen_ms=int(reply[8]),
            why=text(reply[9]),
        )
    if word in (b"unopened", b"no_session", b"gone"):
        answer: a.Unopened | a.NoSession | a.Gone = _plain(word, reply)
        return answer
    clock, now_ms = _terms(reply)
    if word == b"joined":
        return a.Joined(clock=clock, now_ms=now_ms, token=int(reply[6]), lease=text(reply[7]), gpus=_gpus(reply[8]))
    if word == b"busy":
        return a.Busy(clock=clock, now_ms=now_ms)
    if word == b"late":
        return a.Late(clock=clock, now_ms=now_ms)
    if word == b"impossible":
        return a.Impossible(clock=clock, now_ms=now_ms, kind=text(reply[6]), detail=text(reply[7]))
    if word == b"would_deadlock":
        return a.Deadlock(clock=clock, now_ms=now_ms, lease=text(reply[6]))
    raise _unknown(word)


def confirmed(reply: Reply) -> Any:
    """Read what `confirm` answered."""
    word = reply[0]
    if word == b"held":
        return _granted(reply)
    if word not in (b"lapsed", b"frozen"):
        return _plain(word, reply)
    clock, now_ms = _terms(reply)
    if word == b"lapsed":
        return a.Lapsed(clock=clock, now_ms=now_ms)
    return a.Frozen(clock=clock, now_ms=now_ms, remaining_ms=int(reply[6]), why=text(reply[7]))


def ended(reply: Reply) -> Any:
    """Read what `end` answered."""
    if reply[0] != b"ended":
        return _plain(reply[0], reply)
    clock, now_ms = _terms(reply)
    return a.Ended(clock=clock, now_ms=now_ms, reason=text(reply[6]))


def alive(reply: Reply) -> Any:
    """Read what `keepalive` answered."""
    if reply[0] != b"alive":
        return _plain(reply[0], reply)
    clock, now_ms = _terms(reply)
    has, lost = [text(part) for part in reply[7]], [text(part) for part in reply[8]]
    return a.Alive(
        clock=clock,
        now_ms=now_ms,
        listeners=int(reply[6]),
        has=tuple((has[i], int(has[i + 1]), has[i + 2]) for i in range(0, len(has), 3)),
        lost=tuple((lost[i], lost[i + 1]) for i in range(0, len(lost), 2)),
        stops=tuple(text(id) for id in reply[9]),
        rung=tuple(text(id) for id in reply[10]),
    )


def opened(reply: Reply) -> Any:
    """Read what `open` answered."""
    if reply[0] != b"opened":
        return _plain(reply[0], reply)
    clock, now_ms = _terms(reply)
    return a.Opened(
        clock=clock,
        now_ms=now_ms,
        defaults=msgspec.json.decode(reply[6], type=dict[str, Any]),
        how=text(reply[7]),
        refused=tuple(text(part) for part in reply[8]),
    )


def offered(reply: Reply) -> Any:
    """Read what `offer` answered."""
    if reply[0] != b"offered":
        return _plain(reply[0], reply)
    clock, now_ms = _terms(reply)
    return a.Offered(clock=clock, now_ms=now_ms, how=text(reply[6]), frozen_ms=int(reply[7]))


def progressed(reply: Reply) -> Any:
    """Read what `progress` answered."""
    if reply[0] != b"noted":
        return _plain(reply[0], reply)
    clock, now_ms = _terms(reply)
    return a.Noted(clock=clock, now_ms=now_ms, was="")


def reported(reply: Reply) -> Any:
    """Read what `report` answered."""
    if reply[0] not in (b"noted", b"unknown_gpu"):
        return _plain(reply[0], reply)
    clock, now_ms = _terms(reply)
    if reply[0] == b"unknown_gpu":
        return a.UnknownGpu(clock=clock, now_ms=now_ms)
    return a.Noted(clock=clock, now_ms=now_ms, was=text(reply[6]))


def pictured(reply: Reply, pool: str, first: int) -> Any:
    """Read what `snapshot` answered."""
    if reply[0] != b"snapshot":
        return _plain(reply[0], reply)
    clock, now_ms = _terms(reply)
    snapshot = snapshot_of(pool, now_ms, reply[6:15], first)
    return a.Pictured(clock=clock, now_ms=now_ms, snapshot=snapshot, of_boot=int(reply[15]))
