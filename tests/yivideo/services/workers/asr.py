"""Speech recognition: a plain function runs a command under the lock. Its first argument is a list."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.yivideo.services.celery_app import app
from tests.yivideo.services.common.card import note, use_card
from tests.yivideo.services.common.locks import get_gpu_lock_config, gpu_lock, lock_manager


@gpu_lock()
def _run_infer_with_gpu_lock(cmd: list[str], timeout_s: float) -> str:
    note(what="begun", task="infer")
    said = subprocess.run(cmd, capture_output=True, text=True, timeout=timeout_s, check=True).stdout.strip()
    note(what="ended", task="infer")
    return said


@app.task(bind=True, name="qwen3_asr.transcribe")  # type: ignore[untyped-decorator]
def transcribe(self: Any, words: str) -> str:
    """Let a program of its own do it."""
    return _run_infer_with_gpu_lock([sys.executable, "-c", f"print({words!r})"], timeout_s=60)


@app.task(name="funasr.by_hand")  # type: ignore[untyped-decorator]
def by_hand(seconds: float) -> list[bool]:
    """The documented manual form."""
    task_name, lock_key, config = "manual_gpu_task", "gpu_lock:0", get_gpu_lock_config()
    if lock_manager.acquire_lock_with_smart_polling(task_name, lock_key, config):
        try:
            use_card(task_name, seconds)
        finally:
            released = lock_manager.release_lock(task_name, lock_key)
        return [released, lock_manager.release_lock(task_name, lock_key)]
    return []


@gpu_lock()
def recommended_gpu_task() -> str:
    """The documented zero-argument function."""
    return use_card("recommended_gpu_task", 0.01)


@app.task(name="funasr.recommended")  # type: ignore[untyped-decorator]
def recommended() -> str:
    """Call it."""
    return recommended_gpu_task()
