"""Three clocks, one owner each.

Shared time is the ledger's and lives in Lua. Local belief counts on CLOCK_BOOTTIME, which runs on while the
machine sleeps. Wall time is only for printing.
"""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def boottime_s() -> float:
        """Seconds since boot, sleep included; never steps (in seconds)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # pragma: no cover - Linux has it; elsewhere monotonic is the nearest

    def boottime_s() -> float:
        """Seconds on the monotonic clock (in seconds)."""
        return time.monotonic()


def wall_ms() -> int:
    """Milliseconds since the epoch on this host's wall clock: for printing, never for deciding."""
    return time.time_ns() // 1_000_000
