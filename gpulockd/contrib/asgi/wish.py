"""What a route wants of the pool, and what a request is told that does not get it."""

from __future__ import annotations

import math
from typing import Any, Unpack

from starlette.types import Scope

from gpulockd.client.lock import gpu_lock
from gpulockd.client.wishes import Duration
from gpulockd.contrib.asgi.options import Options
from gpulockd.contrib.looking import Looks
from gpulockd.errors import GpuLockError, GpuLockTimeout
from gpulockd.units import parse_duration_s

UNKNOWN_S = 10
"""What `Retry-After` says (in seconds) where nobody can tell how long the holders stay."""

SOONEST_S, LATEST_S = 1, 3600


class Refusal:
    """The answer 503: `detail` is its JSON body, `headers` say when to come again."""

    def __init__(self, message: str, retry_after_s: int, **facts: Any) -> None:
        self.detail: dict[str, Any] = {"message": message, "retry_after_s": retry_after_s, **facts}
        self.headers = {"Retry-After": str(retry_after_s)}


class Wish:
    """What a route asks for and how its refusals sound. What holders are called is not told to strangers."""

    def __init__(self, wait: Duration, **options: Unpack[Options]) -> None:
        """:param wait: how long a request may wait for its GPU (seconds or "2s")
        :raises TypeError: for `max_wait_time`, which `wait` is
        """
        if "max_wait_time" in options:
            raise TypeError("a route has no 'max_wait_time'; it is called 'wait' here")
        self._wait = parse_duration_s(wait, "wait")
        self._options = options
        self._lock = gpu_lock(max_wait_time=self._wait, **options)
        self._named: dict[str, gpu_lock] = {}
        self._looks = Looks(options.get("pool"))

    def __repr__(self) -> str:
        return f"<Wish {self._lock.wants}>"

    def lock(self, scope: Scope) -> gpu_lock:
        """The lock for a request: its task is called as its handler, if the route says no other name."""
        name = getattr(scope.get("endpoint"), "__name__", "")
        if self._options.get("task") is not None or not name:
            return self._lock
        if name not in self._named:
            self._named[name] = gpu_lock(max_wait_time=self._wait, **self._options | {"task": name})
        return self._named[name]

    async def refusal(self, trouble: GpuLockError, scope: Scope) -> Refusal:
        """What a request is told whose GPU did not come (`GpuLockTimeout`), was taken away, or cannot be asked for."""
        if not isinstance(trouble, GpuLockTimeout):
            return Refusal("no GPU can be had now; try again later", UNKNOWN_S)
        lock = self.lock(scope)
        place, start = await self._looks.expected_start(lock.wants, lock.job.task)
        wait_s = UNKNOWN_S if start is None else min(LATEST_S, max(SOONEST_S, math.ceil(start.middle_s)))
        return Refusal(
            f"all GPUs are busy; try again in {wait_s} s",
            wait_s,
            place=place if trouble.place is None else trouble.place,
            expected_wait_s=None if start is None else round(start.middle_s, 1),
        )
