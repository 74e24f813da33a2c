"""How the daemon's records read: gpus and tickets as JSON, told in few words that are safe to print."""

from __future__ import annotations

import re
import time

from gpulockd.cli.talk import NEGATIVE, CommandError
from gpulockd.units import clean, format_duration

TYPE_CHECKING = False  # see gpulockd/__init__.py
if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]
else:
    Record = dict

SOON_S = 120.0


def name_of(key: str) -> str:
    """A GPU's short name: "0" for "gpu_lock:0", else the key."""
    short = key.removeprefix("gpu_lock:")
    return short if short.isdigit() else clean(key)


def is_meant(gpu: Record, text: str) -> bool:
    """Whether somebody who says this means this gpu: its key, index, UUID or the beginning of that."""
    if text.startswith(("GPU-", "MIG-")):
        return str(gpu.get("uuid") or "").startswith(text)
    return text == gpu["key"] or (text.isdigit() and gpu.get("index") == int(text))


def no_such_gpu(text: str) -> CommandError:
    """That there is no gpu of this name."""
    return CommandError(f"there is no GPU {text!r} here", "'gpulockd status' lists them", NEGATIVE)


def is_only_drained(refusal: str) -> bool:
    """Whether a refusal names drained gpus alone, for which no waiting helps; it says the cure itself."""
    return "gpulockd gpu resume" in refusal and " held by " not in refusal


def task_of(ticket: Record) -> str:
    """The task, and which run of it where somebody named that: "ocr-batch 8812"."""
    task, task_id = clean(str(ticket.get("task") or "somebody")), clean(str(ticket.get("task_id") or ""))
    return task if not task_id or task_id.startswith(f"{task}#") else f"{task} {task_id}"


def process_of(ticket: Record) -> str:
    """Pid and user: "48177 ocr"; "17 (its own) ocr" where the daemon does not know the host's pid."""
    if not ticket.get("pid"):
        return ""
    whose = "" if ticket.get("pid_seen", True) else " (its own)"
    return f"{ticket['pid']}{whose} {clean(str(ticket.get('user', '')))}".strip()


def seconds(value: object) -> str:
    """A time in seconds as people read it."""
    return format_duration(float(value)) if isinstance(value, int | float) else ""


def progress_of(ticket: Record) -> str:
    """How far the work is: "64 % frame 412"."""
    percent, note = ticket.get("percent"), ticket.get("note")
    return " ".join(part for part in (f"{percent:.0f} %" if percent is not None else "", clean(note or "")) if part)


def whole_percents(text: str) -> str:
    """A text of the daemon with its percents as whole ones."""
    return re.sub(r"\d+\.\d+(?= %)", lambda found: f"{float(found[0]):.0f}", clean(text))


def wants_of(ticket: Record) -> str:
    """What a ticket waits for: "2 GPUs", "GPU 0, 3", "8 GiB of any GPU"."""
    try:
        mode, count, memory_mib, place = str(ticket.get("wants", "")).split(":", 3)
    except ValueError:
        return str(ticket.get("wants", ""))
    if place == "any":
        where = "any GPU" if count == "1" else f"any {count} GPUs"
    else:
        where = "GPU " + ", ".join(name_of(key) for key in place.split(","))
    if memory_mib == "0":
        return where
    size = f"{int(memory_mib) / 1024:g} GiB"
    return f"{where} with {size}" if mode == "exclusive" else f"{size} of {where}"


def gib(mib: object) -> str:
    """Memory in MiB as people read it."""
    return f"{float(mib) / 1024:.0f} GiB" if isinstance(mib, int | float) else ""


def starts(ticket: Record) -> str:
    """When a ticket may get its GPUs, as a time of day; "away" where its program does not answer."""
    if ticket.get("state") == "away":
        return "away"
    expected = ticket.get("expected_start")
    if not expected:
        return ""
    form = "%H:%M:%S" if expected["middle_s"] < SOON_S else "%H:%M"
    return f"≈ {time.strftime(form, time.localtime(time.time() + expected['middle_s']))}"
