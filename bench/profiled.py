"""`python -m bench.profiled FILE COMMAND...`: `gpulockd COMMAND...`, whose main thread is profiled between two SIGUSR2.

The second one writes what was found to FILE. Start-up, which imports far more than a daemon at rest runs, stays out.
"""

from __future__ import annotations

import cProfile
import os
import signal
import sys
from types import FrameType

from gpulockd.cli import main as gpulockd


def main(file: str) -> None:
    """Run the command."""
    profile = cProfile.Profile()
    running = False

    def switch(number: int, frame: FrameType | None) -> None:
        nonlocal running
        if running:
            profile.disable()
            profile.dump_stats(f"{file}.part")
            os.rename(f"{file}.part", file)
        else:
            profile.enable()
        running = not running

    signal.signal(signal.SIGUSR2, switch)
    sys.exit(gpulockd())


if __name__ == "__main__":
    profile_file = sys.argv.pop(1)
    main(profile_file)
