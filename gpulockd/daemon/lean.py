"""What the daemon does without: libraries that another one loads only because they are installed too."""

from __future__ import annotations

import importlib
import sys

UNUSED = ("rich", "better_exceptions")


def load_log() -> None:
    """Load structlog without what would colour its tracebacks: 4 MiB, and a part of each start.

    Whoever needs one of these later imports it as ever.
    """
    absent = [name for name in UNUSED if name not in sys.modules]
    # An entry that is None makes the import of that name fail, as if it were not installed.
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        importlib.import_module("structlog")
    finally:
        for name in absent:
            del sys.modules[name]
