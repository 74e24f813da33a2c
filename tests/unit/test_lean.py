"""The daemon's own import of its log."""

from __future__ import annotations

import subprocess
import sys

LOADS = """
import sys
from gpulockd.daemon.lean import load_log
load_log()
import structlog
assert "structlog" in sys.modules and "rich" not in sys.modules, sorted(sys.modules)
structlog.dev.ConsoleRenderer()(None, "info", {"event": "said"})
try:
    import rich
except ModuleNotFoundError as missing:
    assert "halted" not in str(missing), missing
"""


def test_the_log_is_loaded_without_what_merely_happens_to_be_installed() -> None:
    """A library that only colours tracebacks would cost every daemon 4 MiB; who needs it later gets it as ever."""
    said = subprocess.run([sys.executable, "-c", LOADS], timeout=60, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
