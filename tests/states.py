"""Waiting for a state instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

WITHIN_S = 30.0


async def until(holds: Callable[[], object], within_s: float = WITHIN_S) -> None:
    """Return once `holds()` is true.

    :raises AssertionError: if it is not within `within_s` seconds
    """
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        await anyio.sleep(0.01)


def until_blocking(holds: Callable[[], object], within_s: float = WITHIN_S) -> None:
    """As `until`, for threads."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.01)
