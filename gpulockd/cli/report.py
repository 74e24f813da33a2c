"""The unambiguous end of a run: `--report FILE`, since a command may itself return 75, 124 or 125."""

from __future__ import annotations

import json
import os
from typing import Any

from gpulockd.cli.talk import CommandError, say
from gpulockd.cli.wish import Grant


def check(path: str, code: int) -> None:
    """:raises CommandError: if no report can be written there"""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise CommandError(f"run: no report can be written to {path}", "name a file in a folder that exists", code)


def write(path: str, outcome: str, code: int, *, grant: Grant | None, waited_s: float, held_s: float) -> None:
    """Write the report, whole or not at all. Waits and holds are in seconds."""
    said: dict[str, Any] = {
        "outcome": outcome,
        "lease": grant.lease if grant else None,
        "token": grant.token if grant else None,
        "gpus": list(grant.gpus) if grant else [],
        "waited_s": round(waited_s, 3),
        "held_s": round(held_s, 3),
        "exit": code,
    }
    beside = f"{path}.{os.getpid()}.new"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(json.dumps(said, indent=2) + "\n")
        os.replace(beside, path)
    except OSError as wrong:
        say(f"the report could not be written to {path}: {wrong.strerror}")
