"""The environment of this process as a request sees it: names are encoded once, for a request reads a dozen."""

from __future__ import annotations

import os
from collections.abc import Mapping

_raw: Mapping[bytes, bytes] = getattr(os.environ, "_data", os.environb)
"""The dictionary behind `os.environ`, which is the environment as bytes; what `os.environ` changes, it shows."""


class Variables:
    """Some variables, read together."""

    __slots__ = ("_raw_names",)

    def __init__(self, *names: str) -> None:
        self._raw_names = tuple(os.fsencode(name) for name in names)

    def raw(self) -> tuple[bytes | None, ...]:
        """Their values now, None where they are not set: to see whether one has changed."""
        return tuple([_raw.get(name) for name in self._raw_names])

    def read(self) -> tuple[str | None, ...]:
        """Their values now as text, None where they are not set."""
        return tuple([None if raw is None else os.fsdecode(raw) for raw in self.raw()])
