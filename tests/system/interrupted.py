"""Runs a command of `gpulockd` and sends it a signal at the Nth line that it comes to: `interrupted N SIGNAL words…`.

It says on standard error how many lines there were, if the signal did not come.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import gpulockd.cli

FILES = {
    str(Path(gpulockd.cli.__file__).with_name(f"{name}.py"))
    for name in ("lining", "handing", "acquire", "adopt", "http", "connection", "wish")
}


class Tracer:
    """Counts the lines of the commands' own files."""

    def __init__(self, number: int, sends: signal.Signals) -> None:
        self.number = number
        self.sends = sends
        self.count = 0

    def begin(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        """A function is called."""
        return self.step if frame.f_code.co_filename in FILES else None

    def step(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        """A line is come to, or a function returns."""
        if event in ("line", "return"):
            self.count += 1
            if self.count == self.number:
                os.kill(os.getpid(), self.sends)
        return self.step


def main() -> int:
    """Run the command, and return its exit code."""
    tracer = Tracer(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    sys.settrace(tracer.begin)
    try:
        return gpulockd.cli.main(sys.argv[3:])
    finally:
        sys.settrace(None)
        if tracer.count < tracer.number:
            print(f"lines {tracer.count}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
