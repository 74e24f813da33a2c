"""A Celery worker whose tasks take turns on the GPUs: `celery -A tasks worker -c 4`.

The four processes of the worker wait in one fair queue, with every other program of this host.
"""

import os
import time

from celery import Celery

from gpulockd import current_lease, gpu_lock

app = Celery("tasks", broker=os.environ.get("BROKER", "redis://"), backend=os.environ.get("BROKER", "redis://"))
app.conf.broker_connection_retry_on_startup = True


@app.task(acks_late=True)
@gpu_lock(max_wait_time="30m", hard_timeout="15m")
def transcribe(path: str) -> dict[str, object]:
    """The GPU is held while the function runs, and given back whatever becomes of it."""
    lease = current_lease()
    time.sleep(0.2)  # the model
    return {"path": path, "gpu": lease.gpu.index if lease else None, "token": lease.token if lease else None}
