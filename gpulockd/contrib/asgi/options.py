"""The arguments of `gpu_lock` that a route may give, as a type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypedDict

from gpulockd.client.cleaning import Cleanup
from gpulockd.client.wishes import Duration, Nested


class Options(TypedDict, total=False):
    """As `gpu_lock` takes them; `max_wait_time` is called `wait` here."""

    lock_key: str | None
    count: int | None
    gpus: Iterable[int | str] | None
    memory: str | int | None
    exclusive: bool | None
    priority: int
    task: str | None
    task_id: str | None
    lock_timeout: Duration | None
    warning: Duration | None
    soft_timeout: Duration | None
    hard_timeout: Duration | None
    heartbeat: Literal["automatic", "manual"]
    nested: Nested
    pool: str | None
    cleanup: Cleanup | None
