"""Tasks that Celery binds, with the lock around them: PaddleOCR, FFmpeg, the audio separator, and speakers."""

from __future__ import annotations

from typing import Any

from tests.yivideo.services.celery_app import app, celery
from tests.yivideo.services.common.card import note, use_card
from tests.yivideo.services.common.locks import gpu_lock


@app.task(bind=True, name="paddleocr.detect_subtitle_area")  # type: ignore[untyped-decorator]
@gpu_lock()
def detect_subtitle_area(self: Any, seconds: float) -> str:
    """Find where the subtitles are."""
    return use_card(self.name, seconds)


@app.task(bind=True, name="paddleocr.perform_ocr")  # type: ignore[untyped-decorator]
@gpu_lock()
def perform_ocr(self: Any, seconds: float) -> str:
    """Read them."""
    return use_card(self.name, seconds)


@app.task(bind=True, name="ffmpeg.crop_subtitle_images", time_limit=1, soft_time_limit=None)  # type: ignore[untyped-decorator]
@gpu_lock()
def crop_subtitle_images(self: Any, seconds: float) -> str:
    """Cut the pictures."""
    return use_card(self.name, seconds)


class AudioSeparatorTask(celery.Task):  # type: ignore[misc]
    """Notes what became of a run."""

    def on_failure(self, exc: BaseException, task_id: str, args: object, kwargs: object, einfo: object) -> None:
        """Note the failure."""
        note(what="failed", task=self.name, task_id=task_id, why=type(exc).__name__)


@app.task(bind=True, base=AudioSeparatorTask, name="audio_separator.separate_vocals", soft_time_limit=1, time_limit=30)  # type: ignore[untyped-decorator]
@gpu_lock()
def separate_vocals(self: Any, seconds: float) -> str:
    """Take voices and music apart."""
    return use_card(self.name, seconds)


@app.task(bind=True, name="pyannote_audio.diarize_speakers")  # type: ignore[untyped-decorator]
@gpu_lock(timeout=1800, poll_interval=0.5, max_wait_time=0.5)
def diarize_speakers(self: Any, seconds: float) -> str:
    """Tell the speakers apart, or give up soon."""
    return use_card(self.name, seconds)
