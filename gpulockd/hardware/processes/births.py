"""Whether a process can have been born since the last look: while none was, nobody need look for children.

The kernel gives pids in turn, to threads too, and tells the last one. Where /proc is not the kernel's own (some
containers) that number may stand still: it is tried before it is believed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_LAST = "/proc/loadavg"


class Births:
    """Tells them by marks: while the mark is the same, no process was born that this pid namespace shows."""

    def __init__(self, last: Callable[[], int | None] | None = None) -> None:
        """:param last: the pid that was given last; default: what the kernel says"""
        self._last = last or last_pid
        self._told = _counts(self._last)

    def __repr__(self) -> str:
        return f"<Births {'told' if self._told else 'not told'}>"

    def mark(self) -> int | None:
        """The mark of now; None where births are not told."""
        return self._last() if self._told else None


def last_pid() -> int | None:
    """Return the pid that was given last; None where that is not told."""
    try:
        with open(_LAST, "rb", buffering=0) as file:
            return int(file.read(256).split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def _counts(last: Callable[[], int | None]) -> bool:
    """Whether a birth moves the number: that of a thread does as well as any."""
    before = last()
    thread = threading.Thread(target=bool, name="born")
    thread.start()
    thread.join()
    return before is not None and last() != before
