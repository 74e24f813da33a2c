"""Numbers as people read them: medians, percentiles, aligned Markdown tables, and the machine they belong to."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie; the nearest one that was measured."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; the first row is the head, the first column is text, the others are numbers."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        words = [cells[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)
        ]
        return "| " + " | ".join(words) + " |"

    rule = "|" + "-" * (widths[0] + 2) + "|" + "".join("-" * (width + 1) + ":|" for width in widths[1:])
    return "\n".join([line(rows[0]), rule, *(line(row) for row in rows[1:])])


def machine_line(binary: str) -> str:
    """Processor, kernel, versions and date: without them the numbers say nothing."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=([\d.]+)", said)
    name = "Valkey" if "valkey" in said.lower() or "valkey" in binary else "Redis"
    packages = ", ".join(f"{package} {version(package)}" for package in ("redis", "hiredis", "python-redis-lock"))
    kernel = platform.release().partition("-")[0]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{_processor()}, {os.cpu_count()} cores, Linux {kernel}; Python {platform.python_version()}, {packages}; "
        f"{name} {found[1] if found else '?'} over a unix socket; {today}"
    )


def _processor() -> str:
    try:
        said = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*: (.+)$", said, re.MULTILINE)
    return found[1] if found else platform.machine()


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """What we promise ourselves: `value` is at most `limit`."""

    text: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether it came true in this run."""
        return self.value <= self.limit


def show_aims(aims: Sequence[Aim]) -> str:
    """The aims as a Markdown table."""
    rows = [("aim", "measured", "limit", "met")]
    rows += [(aim.text, f"{aim.value:,.2f}", f"{aim.limit:,.2f}", "yes" if aim.met else "NO") for aim in aims]
    return table(rows)
