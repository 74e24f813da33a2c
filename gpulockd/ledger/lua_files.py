"""The Lua files, joined with their shared chunks and known by their SHA-1."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

CHUNKS = (
    "_server",
    "_books",
    "_epochs",
    "_gpus",
    "_queue",
    "_holding_back",
    "_placing",
    "_tickets",
    "_members",
    "_ends",
    "_due",
    "_limits",
    "_brought",
    "_begin",
)
"""What every verb begins with. The rooms know each other, so all are declared before the first is filled."""

ROOMS = ("epochs", "gpus", "queue", "holding_back", "placing", "tickets", "members", "ends", "due", "limits", "brought")
_DECLARED = f"local {', '.join(ROOMS)}"


class Script:
    """One verb: its Lua text and the SHA-1 by which the server caches it."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"<Script {self.name} {self.sha[:8]}>"


def lua_text(name: str) -> str:
    """The text of one file of `ledger/lua`, without its ending."""
    return (resources.files("gpulockd.ledger") / "lua" / f"{name}.lua").read_text("utf-8")


def join(name: str, replaced: dict[str, str] | None = None) -> Script:
    """Join a verb with its chunks; `replaced` puts other text in the place of a file (tests turn the clock so)."""
    replaced = replaced or {}
    return Script(name, "\n".join([_DECLARED] + [replaced.get(part) or lua_text(part) for part in (*CHUNKS, name)]))


@cache
def script(name: str) -> Script:
    """The verb of that name."""
    return join(name)
