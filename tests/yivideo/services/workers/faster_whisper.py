"""Transcription: a plain function has the lock, and only where the device is a GPU. Its first argument is a path."""

from __future__ import annotations

from typing import Any

from tests.yivideo.services.celery_app import app
from tests.yivideo.services.common.card import use_card
from tests.yivideo.services.common.locks import get_gpu_lock_status, gpu_lock


def _should_use_gpu_lock_for_transcription(service_config: dict[str, Any]) -> bool:
    return bool(service_config.get("device") == "cuda")


@gpu_lock()  # only with CUDA
def _transcribe_audio_with_gpu_lock(audio_path: str, service_config: dict[str, Any], stage_name: str) -> dict[str, Any]:
    use_card(stage_name, service_config["seconds"])
    return get_gpu_lock_status()


def _transcribe_audio_without_lock(audio_path: str, service_config: dict[str, Any], stage_name: str) -> dict[str, Any]:
    return get_gpu_lock_status()


@app.task(bind=True, name="faster_whisper.transcribe_audio")  # type: ignore[untyped-decorator]
def transcribe_audio(self: Any, audio_path: str, service_config: dict[str, Any]) -> dict[str, Any]:
    """Transcribe, and tell how the lock was meanwhile."""
    if _should_use_gpu_lock_for_transcription(service_config):
        return _transcribe_audio_with_gpu_lock(audio_path, service_config, self.name)
    return _transcribe_audio_without_lock(audio_path, service_config, self.name)
