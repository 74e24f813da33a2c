"""One process of the demo load: asks for a GPU as its kind does, pretends to work, and says what it got when."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from gpulockd import BlockingLease, GpuLockError, ImpossibleRequest, gpu_lock
from gpulockd.demo import CARDS
from gpulockd.hardware.simulated import occupy, vacate
from gpulockd.units import format_duration, parse_memory_mib

SIMULATED = "Simulated GPU"
USED = "12GiB"
STEP_S = 0.5
RETRY_S = 1.0


class Kind(NamedTuple):
    """How long a kind of work pauses and holds (ranges in seconds), and what it calls its steps."""

    pause_s: tuple[float, float]
    hold_s: tuple[float, float]
    step: str


KINDS = {
    "ocr": Kind((0.3, 2.0), (1.0, 3.0), "page"),
    "whisper": Kind((0.5, 3.0), (2.0, 5.0), "segment"),
    "train": Kind((2.0, 5.0), (3.0, 6.0), "batch"),
    "embed": Kind((0.5, 2.0), (1.0, 4.0), "chunk"),
}


def wants_of(kind: str, dice: random.Random) -> dict[str, Any]:
    """What this kind asks for this time."""
    if kind == "embed":
        return {"memory": "8GiB"}
    if kind == "train":
        return {"count": dice.choice((1, 2))}
    return {"priority": 2} if kind == "whisper" else {}


def main(name: str, seed: int) -> None:
    """Ask, hold and pause until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    dice = random.Random(seed)
    kind = name.partition("-")[0]
    while True:
        time.sleep(dice.uniform(*KINDS[kind].pause_s))
        wants = wants_of(kind, dice)
        try:
            with gpu_lock(task=name, **wants) as lease:
                budget = f" ({wants['memory']} of it)" if "memory" in wants else ""
                gpus = ", ".join(str(gpu) for gpu in lease.gpus)
                tell(name, f"got {gpus}{budget} after {format_duration(lease.waited_s)}")
                with on_its_cards(lease, wants.get("memory", USED)):
                    work(lease, dice.uniform(*KINDS[kind].hold_s), KINDS[kind].step)
        except ImpossibleRequest as refused:  # two GPUs where there is one
            tell(name, str(refused))
            time.sleep(dice.uniform(20.0, 40.0))
        except GpuLockError as wrong:
            tell(name, str(wrong))
            time.sleep(RETRY_S)


@contextmanager
def on_its_cards(lease: BlockingLease, used: str) -> Iterator[None]:
    """Be a process on the simulated cards of the lease; real ones are left alone."""
    folder = os.environ.get(CARDS)
    cards = [gpu.index for gpu in lease.gpus if folder and gpu.index is not None and gpu.name == SIMULATED]
    for index in cards:
        occupy(str(folder), index, parse_memory_mib(used))
    try:
        yield
    finally:
        for index in cards:
            vacate(str(folder), index)


def work(lease: BlockingLease, hold_s: float, step: str) -> None:
    """Pretend to work for `hold_s` seconds, and say how far it is."""
    steps = max(1, round(hold_s / STEP_S))
    for done in range(1, steps + 1):
        time.sleep(hold_s / steps)
        lease.progress(100 * done / steps, f"{step} {done} of {steps}")


def tell(name: str, what: str) -> None:
    """Print one line."""
    print(f"{time.strftime('%H:%M:%S')}  {name:<10} {what}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
