"""The Celery application of the tests: what a team would write, and its tasks tell a file what they see.

`CELERY_BROKER` is the broker's URL and the result store's, `CELERY_NOTES` the file, one JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

from gpulockd import current_lease, gpu_lock
from gpulockd.contrib.celery import GpuTask

# Celery ships no types.
celery: Any = importlib.import_module("celery")
exceptions: Any = importlib.import_module("celery.exceptions")

BROKER = os.environ["CELERY_BROKER"]

app: Any = celery.Celery("shop", broker=BROKER, backend=BROKER)
app.conf.update(
    worker_prefetch_multiplier=1, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": float(os.environ.get("CELERY_VISIBILITY", "3600")),
        # Kombu looks each 100 s, and not when another worker looks at that moment.
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
    },
    task_track_started=True, worker_cancel_long_running_tasks_on_connection_loss=False,
)  # fmt: skip


def note(what: str, **facts: Any) -> None:
    """Append a line to the notes; appends of one line do not mix."""
    facts |= {"what": what, "pid": os.getpid(), "at_s": time.monotonic()}
    with open(os.environ["CELERY_NOTES"], "a", encoding="utf-8") as notes:
        notes.write(json.dumps(facts) + "\n")


def use(name: str, lease: Any, until: str = "") -> None:
    """Be on the card until the file `until` is there; without one, for a moment."""
    note("enter", name=name, token=lease.token, gpu=lease.gpu.key, task=lease.task, id=lease.task_id)
    while until and not Path(until).exists():
        time.sleep(0.02)
    time.sleep(0.05)
    note("leave", name=name, token=lease.token, gpu=lease.gpu.key)


@app.task(name="shop.plain")  # type: ignore[untyped-decorator]
@gpu_lock("gpu_lock:0", max_wait_time="2m")
def plain(name: str, until: str = "") -> str:
    """As most people write it."""

    use(name, current_lease(), until)
    return name


@app.task(name="shop.block")  # type: ignore[untyped-decorator]
def block(name: str, until: str = "") -> str:
    """A block within the task, which names nothing."""
    with gpu_lock("gpu_lock:0", max_wait_time="2m") as lease:
        use(name, lease, until)
    return name


@app.task(bind=True, base=GpuTask, gpu={"lock_key": "gpu_lock:0", "max_wait_time": "2m"})  # type: ignore[untyped-decorator]
def hold(self: Any, name: str, until: str = "") -> str:
    """With the base class."""
    use(name, self.lease, until)
    return name


@app.task(base=GpuTask, gpu={"lock_key": "gpu_lock:0"})  # type: ignore[untyped-decorator]
def unbound(name: str) -> str:
    """With the base class, but no `self`."""
    note("enter", name=name)
    return name


@app.task(bind=True, base=GpuTask, acks_late=True, reject_on_worker_lost=True, gpu={"lock_key": "gpu_lock:0"})  # type: ignore[untyped-decorator]
def late(self: Any, name: str, until: str = "") -> str:
    """Delivered again if its worker dies."""
    use(name, self.lease, until)
    return name


@app.task(bind=True, base=GpuTask, gpu={"lock_key": "gpu_lock:0", "mode": "retry", "countdown": 0.5, "stay": 0.5})  # type: ignore[untyped-decorator]
def patient(self: Any, name: str, until: str = "") -> str:
    """Gives its slot back while it waits."""
    use(name, self.lease, until)
    return f"{name} {self.request.retries}"


@app.task(bind=True, base=GpuTask, gpu={"lock_key": "gpu_lock:0"})  # type: ignore[untyped-decorator]
def tells(self: Any, until: str) -> None:
    """Says how far it is, in Celery's words and in ours."""
    self.update_state(state="PROGRESS", meta={"current": 9, "total": 20, "message": "segment 9"})
    note("told")
    use("tells", self.lease, until)


@app.task(bind=True, base=GpuTask, soft_time_limit=6, time_limit=60, gpu={"lock_key": "gpu_lock:0"})  # type: ignore[untyped-decorator]
def soft(self: Any, name: str) -> str:
    """Saves its work at Celery's soft time limit."""
    try:
        use(name, self.lease, "/nowhere/to/be/found")
    except exceptions.SoftTimeLimitExceeded:
        note("saved", name=name, lost=self.lease.lost.is_set())
    return name


@app.task(bind=True, base=GpuTask, gpu={"lock_key": "gpu_lock:0", "soft_timeout": 1})  # type: ignore[untyped-decorator]
def stops(self: Any) -> str:
    """Stops when gpulockd asks it to."""
    return "stopped" if self.lease.stopping.wait_blocking(60) else "not asked"


@app.task(name="shop.cpu")  # type: ignore[untyped-decorator]
def cpu(name: str) -> str:
    """Needs no card."""
    note("cpu", name=name)
    return name
