"""What this daemon has heard of its pool since it began: how leases ended, how fast gpus were handed on, who woke.

Pure: events in, counts out. What must be true over restarts is in the statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from gpulockd.events import Event, GpuResumed, GpuSettled, LockAcquired, LockExpired, LockReleased, LockRevoked, decode
from gpulockd.web.feed import Happened

FREEING = (LockReleased, LockExpired, LockRevoked, GpuSettled, GpuResumed)
MOST_GPUS = 1024

Took = Callable[[float], None]


class Heard:
    """Counts of events by kind, and of waiters by what gave them their gpu.

    `expired` counts leases that ended for a holder that died or was silent, `expired_at_ms` is when the last one did
    (the store's wall clock).

    :param handed_on: is told of each hand-off: from the moment a gpu was free until its next holder had it (in seconds)
    """

    def __init__(self, handed_on: Took) -> None:
        self.kinds: Counter[str] = Counter()
        self.wakeups: Counter[str] = Counter()
        self.expired = 0
        self.expired_at_ms: int | None = None
        self._handed_on = handed_on
        self._free_since_ms: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Heard {self.kinds.total()} events>"

    def take(self, happened: Happened) -> None:
        """Count one event."""
        self.kinds[happened.kind] += 1
        if happened.kind in _KINDS:
            event = decode(happened.json)
            if event is not None:
                self._follow(event)

    def _follow(self, event: Event) -> None:
        if isinstance(event, LockExpired) and not event.planned:
            self.expired_at_ms = event.at_ms
            self.expired += 1
        if isinstance(event, FREEING):
            if len(self._free_since_ms) > MOST_GPUS:
                self._free_since_ms.clear()
            self._free_since_ms.update(dict.fromkeys(event.gpus, event.at_ms))
        elif isinstance(event, LockAcquired):
            freed_ms = [self._free_since_ms.pop(gpu) for gpu in event.gpus if gpu in self._free_since_ms]
            if event.waited_ms:
                self.wakeups[event.via or "doorbell"] += 1
                # Of several gpus the last one counts: only then all were free.
                if freed_ms and event.at_ms >= max(freed_ms):
                    self._handed_on((event.at_ms - max(freed_ms)) / 1000)


_KINDS = frozenset({"lock_released", "lock_expired", "lock_revoked", "gpu_settled", "gpu_resumed", "lock_acquired"})
