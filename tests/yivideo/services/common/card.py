"""The card, as a physical witness: a file that one body at a time can have, and a note of who had it when."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path


def note(**facts: object) -> None:
    """Append one line to the notes of the test; lines of several processes do not mix."""
    line = json.dumps({"pid": os.getpid(), "at": time.monotonic(), **facts}) + "\n"
    descriptor = os.open(Path(os.environ["YIVIDEO_NOTES"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


ENOUGH = ".enough"
"""Behind the name of the notes: the file that ends every computation."""


def use_card(task: str, seconds: float) -> str:
    """Compute on the card, for so long or until somebody says that it is enough.

    :raises BlockingIOError: if somebody else is on it
    """
    with open(os.environ["YIVIDEO_NOTES"] + ".card", "a", encoding="ascii") as card:
        fcntl.flock(card, fcntl.LOCK_EX | fcntl.LOCK_NB)
        note(what="begun", task=task)
        ends_at, enough = time.monotonic() + seconds, Path(os.environ["YIVIDEO_NOTES"] + ENOUGH)
        while time.monotonic() < ends_at and not enough.exists():
            time.sleep(max(0.0, min(0.02, ends_at - time.monotonic())))
        note(what="ended", task=task)
    return f"{task} done"
