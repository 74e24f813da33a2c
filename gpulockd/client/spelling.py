"""A word that a call does not have: which one was meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

NEAR = 0.7
"""How alike two words must be (0 to 1) for one to be meant by the other."""


def suggests(init: F) -> F:
    """Return an `__init__` whose `TypeError` for an unknown word says which one may be meant."""
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @functools.wraps(init)
    def suggesting(self: Any, *args: Any, **words: Any) -> None:
        try:
            init(self, *args, **words)
        except TypeError:
            unknown = next((word for word in words if word not in known), None)
            if unknown is None:
                raise
            difflib = import_module("difflib")  # slow to load, and seldom needed
            near = difflib.get_close_matches(unknown, known, n=1, cutoff=NEAR)
            near = near or [name for name in known if unknown in name]
            meant = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise TypeError(f"{type(self).__name__}() has no argument {unknown!r}; {meant}") from None

    return suggesting  # type: ignore[return-value] # same signature as `init`
