"""The unambiguous end of a run: `--report FILE`, since a command may itself return 75, 124 or 125."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from gpulockd.cli.talk import CommandError, say
from gpulockd.cli.wish import Grant


class Account:
    """How a run goes: `outcome` in a word, the exit code, what it was granted and since when it has it."""

    def __init__(self, code: int) -> None:
        """:param code: the exit code of a run of which nothing else becomes known"""
        self.outcome = "failed"
        self.code = code
        self.task = ""
        self.grant: Grant | None = None
        self._began = time.monotonic()
        self._granted_at: float | None = None

    def granted(self, grant: Grant) -> None:
        """The wait is over, the hold begins."""
        self.grant, self._granted_at = grant, time.monotonic()

    def ended(self, outcome: str, code: int) -> int:
        """This is how it has ended; return the exit code."""
        self.outcome, self.code = outcome, code
        return code

    def so_far(self, outcome: str = "running") -> dict[str, Any]:
        """All of it while the run goes on, with no exit code yet."""
        return {**self.said(), "outcome": outcome, "exit": None}

    def said(self) -> dict[str, Any]:
        """All of it as JSON; waits and holds are in seconds."""
        grant, now = self.grant, time.monotonic()
        waited_s = grant.waited_s if grant else now - self._began
        held_s = now - self._granted_at if self._granted_at is not None else 0.0
        return {
            "outcome": self.outcome,
            "task": self.task,
            "lease": grant.lease if grant else None,
            "token": grant.token if grant else None,
            "gpus": list(grant.gpus) if grant else [],
            "waited_s": round(waited_s, 3),
            "held_s": round(held_s, 3),
            "exit": self.code,
        }


def check(path: str, code: int) -> None:
    """:raises CommandError: if no report can be written there"""
    if path == "-":
        raise CommandError("run: --report -: stdout is the command's own", "name a file, such as report.json", code)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise CommandError(f"run: no report can be written to {path}", "name a file in a folder that exists", code)


def write(path: str, said: dict[str, Any]) -> None:
    """Write the report, whole or not at all; into a device or a pipe as it comes."""
    path = os.path.realpath(path)  # a link stays one
    beside = f"{path}.{os.getpid()}.new"
    try:
        if os.path.lexists(path) and not os.path.isfile(path):
            with open(path, "w", encoding="utf-8") as there:
                there.write(json.dumps(said, indent=2) + "\n")
            return
        with open(beside, "w", encoding="utf-8") as file:
            file.write(json.dumps(said, indent=2) + "\n")
        os.replace(beside, path)
    except OSError as wrong:
        say(f"the report could not be written to {path}: {wrong.strerror}")
