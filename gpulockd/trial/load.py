"""What the tasks of a trial do: which, when and for how long. Pure: the same numbers give the same load.

Both configurations get the same load. Tasks come at their times, however long those before them have waited, so both
stores serve the same work in the same time and their CPU can be compared.
"""

from __future__ import annotations

import random

import msgspec


class Task(msgspec.Struct, frozen=True):
    """A kind of task, and how long it has its GPU (in seconds)."""

    name: str
    hold_s: float


TASKS = (Task("paddleocr_short_task", 0.05), Task("ffmpeg_medium_task", 0.15), Task("faster_whisper_long_task", 0.45))
"""Short, medium and long, in the proportions of a page, a clip and a segment of speech."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a round: `at_s` seconds after the round began it asks for `key`, then works for `hold_s` seconds."""

    at_s: float
    key: str
    task: str
    hold_s: float


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """On each of `gpus` GPUs, once a round, one task of each kind; `rounds` rounds with each configuration.

    `scale`: how many times as long as usual the tasks are.
    """

    tasks: tuple[Task, ...] = TASKS
    gpus: int = 8
    rounds: int = 4
    scale: float = 1.0

    @property
    def holds_s(self) -> float:
        """How long the tasks of one round have one GPU together (in seconds)."""
        return sum(task.hold_s for task in self.tasks) * self.scale

    def round_s(self, *, polling: bool) -> float:
        """How long a round is at least (in seconds): all its tasks have usually ended by then."""
        return 1.0 + 1.5 * self.holds_s + (4.0 if polling else 0.0)

    def starts(self, number: int, seed: int) -> list[Start]:
        """The tasks of round `number`. They come close together, so that all but the first of a GPU wait."""
        dice = random.Random(f"{seed}/{number}")
        return [
            Start(
                at_s=dice.uniform(0.0, 0.3 * self.holds_s),
                key=f"gpu_lock:{gpu}",
                task=task.name,
                hold_s=task.hold_s * self.scale,
            )
            for gpu in range(self.gpus)
            for task in self.tasks
        ]


def of_names(names: list[str]) -> tuple[Task, ...]:
    """Return the kinds of task with these names; another name is a short task.

    :param names: such as "ffmpeg_medium_task"
    """
    known = {task.name: task for task in TASKS}
    return tuple(known.get(name, Task(name, TASKS[0].hold_s)) for name in names)
