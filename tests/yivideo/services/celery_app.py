"""The Celery application of the services; `YIVIDEO_BROKER` is the URL of broker and results."""

from __future__ import annotations

import importlib
import os
from typing import Any

# Celery ships no types.
celery: Any = importlib.import_module("celery")

WORKERS = ("asr", "faster_whisper", "indextts", "vision")

app: Any = celery.Celery(
    "yivideo",
    broker=os.environ["YIVIDEO_BROKER"],
    backend=os.environ["YIVIDEO_BROKER"],
    include=[f"tests.yivideo.services.workers.{name}" for name in WORKERS],
)
app.conf.update(
    worker_prefetch_multiplier=1,
    task_acks_late=False,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    broker_transport_options={"global_keyprefix": "broker:"},
)
