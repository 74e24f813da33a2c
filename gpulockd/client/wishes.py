"""What a call wishes, completed by the configuration.

Every argument that is left out comes from what was changed live, else from `GPU_LOCK_<KEY>` or `GPULOCKD_<BLOCK>_<KEY>`
in the environment, read at each request, else from what the pool has published, else from the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

import msgspec

from gpulockd.client.environment import Said
from gpulockd.client.published import gpu_lock_for
from gpulockd.client.waiting import Patience
from gpulockd.errors import ConfigError, ImpossibleRequest
from gpulockd.model import GPU_KEY_PREFIX, Job, Wants
from gpulockd.settings import GpuLockBlock, QueueBlock, SessionBlock, SettleBlock, check_session, out_of_order
from gpulockd.units import check_key, check_plain, parse_duration_s, parse_memory_mib

Duration = float | int | str

UNLIMITED_S = 1e9
"""A limit beyond every job's life (in seconds)."""
SHORTEST_LIMIT_S = 0.05
Nested = Literal["error", "join", "wait"]


_SESSION = Said.of("GPULOCKD_SESSION", SessionBlock)
_QUEUE = Said.of("GPULOCKD_QUEUE", QueueBlock)
_SETTLE = Said.of("GPULOCKD_SETTLE", SettleBlock)


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A wait in turns: a stay in the queue at a time, then back to the caller, who comes again for the same place.

    `stay_s`: how long to stay if it is first in the queue; `waited_s`: how long it has waited before (both in seconds)
    """

    parked: str = ""
    stay_s: float
    waited_s: float = 0.0


def session_block() -> SessionBlock:
    """This process's session times, which open a pool that nobody has opened.

    :raises ConfigError: if they do not fit together
    """
    block = SessionBlock(**_SESSION.read())
    check_session(block)
    return block


def queue_block() -> QueueBlock:
    """The queue's times as the environment sets them."""
    return QueueBlock(**_QUEUE.read())


def settle_block() -> SettleBlock:
    """The settling as the environment sets it."""
    return SettleBlock(**_SETTLE.read())


def gpu_lock_block(published: dict[str, Any], session: str = "", task: str = "") -> GpuLockBlock:
    """How to wait: what was changed live, over the environment, over what the pool has published, over the defaults.

    :raises ConfigError: if a variable of the environment cannot be used
    """
    return gpu_lock_for(published, session, task).gpu_lock


def wants_of(
    lock_key: str | None,
    count: int | None,
    gpus: Iterable[int | str] | None,
    memory: str | int | None,
    exclusive: bool | None,
) -> Wants:
    """What a call asks for.

    :raises ImpossibleRequest: if the arguments contradict each other or name nothing
    """
    # Most calls of a program say the same, so what they mean is worked out once.
    plain = lock_key is None or type(lock_key) is str
    if plain and gpus is None and memory is None and exclusive is None and count is None:
        return _one(lock_key)
    memory_mib = parse_memory_mib(memory) if memory is not None else 0
    whole = exclusive if exclusive is not None else memory is None
    if not whole and not memory_mib:
        raise ImpossibleRequest("exclusive=False shares a card: say how much of it with memory='8GiB'")
    keys: tuple[str, ...] = ()
    if lock_key is not None and gpus is not None:
        raise ImpossibleRequest("give either a lock key or gpus=[...], not both")
    if lock_key is not None:
        keys = (_lock_key(lock_key),)
    elif gpus is not None:
        keys = tuple(_gpu_key(gpu) for gpu in ([gpus] if isinstance(gpus, str | int) else gpus))
        if not keys:
            raise ImpossibleRequest("gpus=[] names no GPU; leave it out for any GPU")
    return Wants(
        count=count if count is not None else max(1, len(keys)), keys=keys, memory_mib=memory_mib, exclusive=whole
    )


@lru_cache(maxsize=256)
def _one(lock_key: str | None) -> Wants:
    """A whole GPU: the one of that key, or any."""
    return Wants(keys=() if lock_key is None else (_lock_key(lock_key),))


def _lock_key(key: str) -> str:
    """The key of a lock; what only looks like a GPU is refused, for it would lock a name and no card."""
    looks = re.fullmatch(r"(?:gpu:?|cuda:?)?(\d+)", key, re.IGNORECASE) if isinstance(key, str) else None
    if looks:
        raise ImpossibleRequest(f"{key!r} is not a lock key; did you mean 'gpu_lock:{looks[1]}'?")
    if isinstance(key, str) and (key == "any" or key.startswith(("GPU-", "MIG-"))):
        raise ImpossibleRequest(f"{key!r} is not a lock key; use 'gpu_lock:0' or gpus=[0], or no key for any GPU")
    return check_key(key)


def _gpu_key(gpu: int | str) -> str:
    if isinstance(gpu, int) and not isinstance(gpu, bool) and gpu >= 0:
        return f"{GPU_KEY_PREFIX}{gpu}"
    if isinstance(gpu, str) and gpu.isdigit():
        return f"{GPU_KEY_PREFIX}{int(gpu)}"
    if isinstance(gpu, str) and gpu.startswith(GPU_KEY_PREFIX):
        return check_key(gpu)
    raise ImpossibleRequest(f"gpus: {gpu!r} is not a GPU; use its index, such as 0, or its key, 'gpu_lock:0'")


def job_of(
    task: str,
    task_id: str | None,
    warning: Duration | None,
    soft_timeout: Duration | None,
    hard_timeout: Duration | None,
    heartbeat: str,
) -> Job:
    """What the holder says of its work.

    :param hard_timeout: as the other two a duration, or "none" for no such limit
    :raises ConfigError: unless warning <= soft_timeout <= hard_timeout where given, or if a name cannot be shown
    """
    if (warning, soft_timeout, hard_timeout, task_id, heartbeat) == (None, None, None, None, "automatic"):
        return _unlimited(str(task))
    if heartbeat not in ("automatic", "manual"):
        raise ConfigError(f"heartbeat={heartbeat!r}: say 'automatic' or 'manual'")
    limits = {
        name: _limit_s(value, name) if value is not None else None
        for name, value in (("warning", warning), ("soft_timeout", soft_timeout), ("hard_timeout", hard_timeout))
    }
    given = [value for value in limits.values() if value is not None]
    if given != sorted(given):
        raise ConfigError(out_of_order(limits))
    return Job(
        task=check_plain(str(task)[:200], "task"),
        task_id=check_plain(str(task_id or "")[:200], "task_id"),
        warning_s=limits["warning"],
        soft_timeout_s=limits["soft_timeout"],
        hard_timeout_s=limits["hard_timeout"],
        heartbeat="manual" if heartbeat == "manual" else "automatic",
    )


@lru_cache(maxsize=256)
def _unlimited(task: str) -> Job:
    """A task whose limits are all the pool's."""
    return Job(task=check_plain(task[:200], "task"))


def _limit_s(value: Duration, name: str) -> float:
    limit_s = UNLIMITED_S if value == "none" else parse_duration_s(value, name)
    if limit_s < SHORTEST_LIMIT_S:
        raise ConfigError(
            f"{name}: {value!r} is over at once; say {SHORTEST_LIMIT_S:g} s or more, or 'none' for no limit"
        )
    return limit_s


def check_priority(priority: object) -> int:
    """:raises ImpossibleRequest: unless it is a whole number from -100 to 100"""
    if not isinstance(priority, int) or isinstance(priority, bool) or not -100 <= priority <= 100:
        raise ImpossibleRequest(f"priority={priority!r}: say a whole number from -100 to 100, higher goes first")
    return priority


def patience_of(
    block: GpuLockBlock,
    max_wait_time: Duration | None,
    poll_interval: Duration | None,
) -> Patience:
    """How long to wait and how to poll: the call over the configuration.

    :raises ConfigError: if a duration cannot be read
    """
    wait_s = block.max_wait_time if max_wait_time is None else parse_duration_s(max_wait_time, "max_wait_time")
    poll_s = block.poll_interval if poll_interval is None else parse_duration_s(poll_interval, "poll_interval")
    return Patience(
        max_wait_s=wait_s,
        poll_interval_s=max(0.05, poll_s),
        max_poll_interval_s=block.max_poll_interval,
        exponential_backoff=block.exponential_backoff,
    )


def renamed(job: Job, task: str) -> Job:
    """The same job under another name."""
    return msgspec.structs.replace(job, task=task)
