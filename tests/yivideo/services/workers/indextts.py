"""Speech: a task class whose `on_failure` releases the lock, with a manager of its own."""

from __future__ import annotations

from typing import Any

from tests.yivideo.services.celery_app import app, celery
from tests.yivideo.services.common.card import note, use_card
from tests.yivideo.services.common.locks import SmartGpuLockManager, get_gpu_lock_config, gpu_lock

KEY = "gpu_lock:0"
gpu_lock_manager = SmartGpuLockManager()


class IndexTTSTask(celery.Task):  # type: ignore[misc]
    """Releases what a failed run has left, by its id and by its name."""

    def on_failure(self, exc: BaseException, task_id: str, args: object, kwargs: object, einfo: object) -> None:
        """Release."""
        by_id = gpu_lock_manager.release_lock(task_id, KEY, "task_failure")
        by_name = gpu_lock_manager.release_lock(self.name, KEY, "task_failure")
        note(what="failed", task=self.name, task_id=task_id, by_id=by_id, by_name=by_name, why=str(exc))


@app.task(bind=True, base=IndexTTSTask, name="indextts.generate_speech", acks_late=True)  # type: ignore[untyped-decorator]
@gpu_lock(max_wait_time=0.5)
def generate_speech(self: Any, seconds: float) -> str:
    """Speak, or give up soon."""
    return use_card(self.name, seconds)


@app.task(bind=True, base=IndexTTSTask, name="indextts.clone_voice")  # type: ignore[untyped-decorator]
def clone_voice(self: Any) -> str:
    """Take the lock by hand, and fail without giving it back."""
    assert gpu_lock_manager.acquire_lock_with_smart_polling(self.name, KEY, get_gpu_lock_config())
    use_card(self.name, 0.05)
    raise RuntimeError("no voice")


@app.task(name="indextts.health_check")  # type: ignore[untyped-decorator]
def health_check() -> dict[str, Any]:
    """How the lock is, as a worker sees it."""
    return gpu_lock_manager.get_lock_info()
