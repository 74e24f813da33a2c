"""The libraries of others that a part of `contrib` needs: which extra of ours brings them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import others' libraries inside; one that is missing is said with the extra that has it.

    :raises ModuleNotFoundError: with the command that installs it
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("gpulockd"):
            raise
        text = f"{missing.name} is not installed, which this part of gpulockd needs: pip install 'gpulockd[{name}]'"
        raise ModuleNotFoundError(text, name=missing.name) from None
