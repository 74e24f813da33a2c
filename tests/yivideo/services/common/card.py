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


def use_card(task: str, seconds: float) -> str:
    """Compute on the card.

    :raises BlockingIOError: if somebody else is on it
    """
    with open(os.environ["YIVIDEO_NOTES"] + ".card", "a", encoding="ascii") as card:
        fcntl.flock(card, fcntl.LOCK_EX | fcntl.LOCK_NB)
        note(what="begun", task=task)
        time.sleep(seconds)
        note(what="ended", task=task)
    return f"{task} done"
