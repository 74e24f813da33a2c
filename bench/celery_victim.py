"""A Celery application whose task holds the card, for the recovery measurement.

`BENCH_BROKER` is the broker's URL, `BENCH_NOTES` the file to which the task writes the process that holds.
"""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

from bench.victims import KEY, WAIT_S
from gpulockd import gpu_lock

# Celery ships no types, and not every environment has it.
celery: Any = importlib.import_module("celery")

app: Any = celery.Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_ignore_result=True, worker_prefetch_multiplier=1, worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)  # fmt: skip


@app.task(name="bench.hold")  # type: ignore[untyped-decorator]
def hold() -> None:
    """Hold the card until killed."""
    with gpu_lock(KEY, max_wait_time=WAIT_S):
        with open(os.environ["BENCH_NOTES"], "a", encoding="ascii") as notes:
            notes.write(f"{os.getpid()}\n")
        worker = os.getppid()
        while os.getppid() == worker:  # nothing of it outlives its worker
            time.sleep(0.5)
