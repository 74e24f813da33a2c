"""What a run asks for, as its request says it, the same at every try."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class Wish(NamedTuple):
    """A run's request. Times are in seconds; `wait_s` and `limit_s` None mean the pool's setting.

    `usual_wait_s` is what this environment says, which goes before what the pool's files say.

    A run chooses `session` and `ticket` and keeps them alive; with `pid` or `ttl_s` (seconds) the daemon does.
    `spares_older`: the children that the process has already are no part of the run.
    """

    gpu_count: int | None
    gpus: tuple[int | str, ...] | None
    memory: str | None
    priority: int
    wait_s: float | None
    usual_wait_s: float | None
    limit_s: float | None
    task: str
    inside: tuple[str, int] | None
    process: dict[str, Any]
    session: str = ""
    ticket: str = ""
    pid: int | None = None
    ttl_s: float | None = None
    spares_older: bool = False

    @property
    def is_kept_for_us(self) -> bool:
        """Whether the daemon keeps the lease after the grant."""
        return self.pid is not None or self.ttl_s is not None

    def body(self, wait_s: float | None) -> dict[str, Any]:
        """The request's JSON, with so much of the wait limit left (in seconds)."""
        return {
            "count": 1 if self.gpu_count is None else self.gpu_count,
            "gpus": list(self.gpus) if self.gpus is not None else None,
            "memory": self.memory,
            "priority": self.priority,
            "max_wait_time": wait_s,
            "usual_max_wait_time": self.usual_wait_s,
            "task": self.task,
            "hard_timeout": self.limit_s,
            "session": self.session or None,
            "ticket": self.ticket or None,
            "process": self.process,
            "pid": self.pid,
            "ttl": self.ttl_s,
            "inside": list(self.inside) if self.inside else None,
            # A daemon of before this word refuses it, so it is said only where it matters.
            **({"spares_older": True} if self.spares_older else {}),
        }


class Grant(NamedTuple):
    """What a request was granted. `asked_at` (seconds on CLOCK_BOOTTIME): when the daemon surely still kept it.

    `limits_s`: the ages at which it is warned of, asked to stop, and ended (in seconds), if the daemon has said them.
    """

    lease: str
    token: int
    pool: str
    gpus: tuple[dict[str, Any], ...]
    waited_s: float
    store: str
    env: dict[str, str]
    is_member: bool
    asked_at: float
    limits_s: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, said: dict[str, Any], inside: tuple[str, int] | None, asked_at: float) -> Grant:
        """Read the line that says so. The token of the lease `inside` which it asked means that it has joined that."""
        token = int(said["token"])
        joined = inside if inside is not None and inside[1] == token else None
        return cls(
            lease=joined[0] if joined else str(said["lease"]),
            token=token,
            is_member=joined is not None,
            pool=str(said["pool"]),
            gpus=tuple(said["gpus"]),
            waited_s=float(said.get("waited_s") or 0.0),
            store=str(said["store"]),
            env={str(name): str(value) for name, value in (said.get("env") or {}).items()},
            asked_at=asked_at,
            limits_s=_three(said.get("limits_s")),
        )

    @property
    def names(self) -> str:
        """The GPUs in short: "GPU 0, GPU 1"."""
        return ", ".join(str(gpu["key"]) if gpu.get("index") is None else f"GPU {gpu['index']}" for gpu in self.gpus)

    @property
    def shown(self) -> str:
        """The GPUs as people read them: "GPU 1 (NVIDIA H200)"."""
        models = sorted({str(gpu["name"]) for gpu in self.gpus if gpu.get("name")})
        return self.names + (f" ({', '.join(models)})" if models else "")


def _three(limits_s: Any) -> tuple[float, float, float] | None:
    if not isinstance(limits_s, list) or len(limits_s) != 3:
        return None
    warning_s, soft_s, hard_s = (float(limit_s) for limit_s in limits_s)
    return warning_s, soft_s, hard_s


def inherited_pair() -> tuple[str, int] | None:
    """The lease of the run that this command was started in, if it was."""
    lease, token = os.environ.get("GPULOCKD_LEASE"), os.environ.get("GPULOCKD_TOKEN", "")
    return (lease, int(token)) if lease and token.isdigit() else None
