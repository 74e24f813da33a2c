"""The watchdog is fed only while every service gets on with its work: a daemon whose loop turns but whose timer is dead
is as good as hung, and systemd starts it again.

Each service has a `Pulse` and beats it whenever it has ended a cycle, also one that met expected trouble (the store is
away): what it proves is that it goes round, not that the world is well.
"""

from __future__ import annotations

import anyio
import anyio.abc
import structlog

from gpulockd.daemon.notify import notify
from gpulockd.daemon.pulse import Pulses

LOOK_AGAIN_S = 1.0
"""How soon to look again at a service that is late (in seconds)."""

_log = structlog.get_logger(__name__)


async def run(
    pulses: Pulses,
    interval_s: float,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Tell the service manager every `interval_s` (in seconds) that the daemon gets on, and say who does not."""
    said: tuple[str, ...] = ()
    task_status.started()
    while True:
        late = pulses.overdue()
        if not late:
            notify("WATCHDOG=1")
        if late and late != said:
            _log.error("watchdog.starved", services=late, message=f"no progress: {', '.join(late)}")
            notify(f"STATUS=no progress: {', '.join(late)}")
        elif said and not late:
            _log.info("watchdog.recovered", message="every service gets on again")
            notify("STATUS=every service gets on again")
        said = late
        # After a stall of the whole process all are late for a moment; that must not cost a whole interval.
        await anyio.sleep(min(interval_s, LOOK_AGAIN_S) if late else interval_s)
