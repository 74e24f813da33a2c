"""YiVideo's services as they are documented, with one import changed, under Celery's prefork pool on one GPU.

Whoever is on the card has a lock of the kernel on it, so two bodies at a time would fail at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("celery", reason="celery is not installed")

from tests.states import until_blocking
from tests.yivideo.stage import Services, services


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """One host with its worker for all tests here."""
    with services(tmp_path_factory.mktemp("yivideo")) as made:
        yield made


@pytest.fixture(autouse=True)
def _anew(host: Services) -> None:
    host.forget()


def on_card(host: Services) -> list[str]:
    """The tasks on the card, one after the other.

    :raises AssertionError: if two were on it at once
    """
    names = []
    present: str | None = None
    for one in host.notes():
        if one["what"] == "begun":
            assert present is None, f"{one['task']} began while {present} was on the card"
            present = one["task"]
            names.append(present)
        elif one["what"] == "ended":
            present = None
    return names


def failure(host: Services, result: Any) -> dict[str, Any]:
    """What `on_failure` of a task has noted."""
    until_blocking(lambda: host.notes(what="failed", task_id=result.id))
    return host.notes(what="failed", task_id=result.id)[0]


def test_four_tasks_of_half_a_second_follow_one_another(host: Services) -> None:
    """D1: with YiVideo's own code the listener does not survive the fork, and these take 38 s."""
    began_s = time.monotonic()
    results = [host.send("paddleocr.perform_ocr", 0.5) for _ in range(4)]
    assert [host.done(result) for result in results] == ["paddleocr.perform_ocr done"] * 4
    took_s = time.monotonic() - began_s
    assert on_card(host) == ["paddleocr.perform_ocr"] * 4
    notes = host.notes()
    gaps_s = [later["at"] - sooner["at"] for sooner, later in zip(notes[1::2], notes[2::2], strict=False)]
    print(f"4 tasks of 0.5 s in {took_s:.2f} s, hand-offs {', '.join(f'{gap_s * 1000:.1f} ms' for gap_s in gaps_s)}")
    assert len({one["pid"] for one in notes}) > 1  # several children, so hand-offs between processes
    assert "成功获取GPU锁" in host.log and "释放GPU锁" in host.log


def test_every_documented_form_of_call_has_the_lock(host: Services) -> None:
    """Methods with `self`, plain functions with a path or a list, no argument at all, and the lock by hand."""
    whisper = host.send("faster_whisper.transcribe_audio", "/tmp/movie.mp4", {"device": "cuda", "seconds": 0.2})
    others = [
        host.send("paddleocr.detect_subtitle_area", 0.1),
        host.send("audio_separator.separate_vocals", 0.1, soft_time_limit=60, time_limit=90),
        host.send("indextts.generate_speech", 0.0),
        host.send("qwen3_asr.transcribe", "hello"),
        host.send("funasr.recommended"),
        host.send("funasr.by_hand", 0.05),
    ]
    status = host.done(whisper)
    # D16: the path is an argument and not the owner; the request is the run.
    assert (status["is_locked"], status["lock_holder"]) == (True, whisper.id)
    assert [host.done(one) for one in others[:2]] == [
        "paddleocr.detect_subtitle_area done",
        "audio_separator.separate_vocals done",
    ]
    assert host.done(others[3]) == "hello"
    assert host.done(others[4]) == "recommended_gpu_task done"
    assert host.done(others[5]) == [True, False]  # a second release has nothing to release
    host.done(others[2])
    on_card(host)


def test_only_what_needs_the_card_waits_for_it(host: Services) -> None:
    """Conditional locking: on the CPU the task runs beside the one that holds, and sees who that is."""
    holder = host.send("paddleocr.perform_ocr", 600.0)
    until_blocking(lambda: host.notes(what="begun"))
    status = host.done(host.send("faster_whisper.transcribe_audio", "/tmp/a.wav", {"device": "cpu"}))
    assert not holder.ready()
    assert (status["is_locked"], status["lock_holder"]) == (True, holder.id)
    info = host.done(host.send("indextts.health_check"))
    assert (info["lock_type"], info["health"]["status"]) == ("active", "healthy")
    host.enough()
    assert host.done(holder) == "paddleocr.perform_ocr done"


def test_a_wait_that_is_too_long_says_so_in_both_phrases(host: Services) -> None:
    """Celery keeps only the text of the error; who looks for either phrase finds it, and the holder is not touched."""
    holder = host.send("paddleocr.perform_ocr", 600.0)
    until_blocking(lambda: host.notes(what="begun"))
    late, speech = host.send("pyannote_audio.diarize_speakers", 0.0), host.send("indextts.generate_speech", 0.0)
    text = str(host.done(late))
    assert text.startswith(
        "GPU_LOCK_TIMEOUT: 任务 pyannote_audio.diarize_speakers 无法获取锁 'gpu_lock:0'，任务放弃执行"
    )
    assert "无法获取GPU锁" in text and "paddleocr.perform_ocr" in text
    host.done(speech)
    failed = failure(host, speech)
    # D2, D3: a run that never had the lock releases nobody's, by its id or by its name.
    assert (failed["by_id"], failed["by_name"]) == (False, False)
    host.enough()
    assert host.done(holder) == "paddleocr.perform_ocr done"
    assert on_card(host) == ["paddleocr.perform_ocr"]


def test_on_failure_ends_the_lease_of_its_own_run(host: Services) -> None:
    """A-028: what a failed run has left is given back at once, and only that: once."""
    failing = host.send("indextts.clone_voice")
    assert "no voice" in str(host.done(failing))
    failed = failure(host, failing)
    assert (failed["by_id"], failed["by_name"]) == (True, False)
    assert host.done(host.send("paddleocr.perform_ocr", 0.0)) == "paddleocr.perform_ocr done"


def test_a_killed_child_gives_the_card_back(host: Services) -> None:
    """D4, D22: nobody waits for the rest of a lock timeout of an hour."""
    doomed = host.send("paddleocr.perform_ocr", 600.0)
    until_blocking(lambda: host.notes(what="begun"))
    waiting = host.send("paddleocr.detect_subtitle_area", 0.0)
    os.kill(host.notes(what="begun")[0]["pid"], signal.SIGKILL)
    assert host.done(waiting) == "paddleocr.detect_subtitle_area done"
    assert type(host.done(doomed)).__name__ == "WorkerLostError"


def test_time_limits_of_celery_leave_no_lock(host: Services) -> None:
    """The soft one raises in the body; at the hard one Celery kills the child, and `on_failure` is not called."""
    soft = host.send("audio_separator.separate_vocals", 600.0)
    assert type(host.done(soft)).__name__ == "SoftTimeLimitExceeded"
    hard = host.send("ffmpeg.crop_subtitle_images", 600.0)
    assert type(host.done(hard)).__name__ == "TimeLimitExceeded"
    assert host.done(host.send("paddleocr.perform_ocr", 0.0)) == "paddleocr.perform_ocr done"
    assert failure(host, soft)["why"] == "SoftTimeLimitExceeded"
