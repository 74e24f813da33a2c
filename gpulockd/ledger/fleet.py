"""Calls of the fleet's configuration verbs: their slot, how they are sent, and how their words are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from gpulockd.errors import GpuLockError
from gpulockd.ledger.keys import FleetKeys
from gpulockd.ledger.lua_files import fleet_script
from gpulockd.ledger.verbs import Call

T = TypeVar("T")
Reply = list[Any]
Ask = Callable[[Call[Any]], Awaitable[Any]]
"""Sends a script: `Store.ask` of any connection to the store."""

KEYS = FleetKeys()


def call(verb: str, *args: Any, read: Callable[[Reply], T], keys: FleetKeys = KEYS) -> Call[T]:
    """A call of a fleet's verb. It belongs to no session."""
    return Call(fleet_script(verb), keys, ("", *args), read)


def encode(value: Any) -> str:
    """A value as JSON in one text."""
    return msgspec.json.encode(value).decode()


def line(*, author: str, origin: str, what: str, text: str) -> str:
    """A line of the audit; when, and about which revision, the store adds."""
    return encode({"author": author, "origin": origin, "what": what, "text": text})


def words(reply: Reply) -> list[str]:
    """The words of a reply as texts."""
    return [word.decode() if isinstance(word, bytes) else str(word) for word in reply]


def unknown(word: str) -> GpuLockError:
    """The answer to a word that nobody here knows."""
    return GpuLockError(f"the ledger answered {word!r}, which this version of gpulockd does not know: update it")


def pairs(flat: list[Any]) -> list[tuple[str, str]]:
    """A flat list of pairs of texts."""
    texts = words(flat)
    return list(zip(texts[::2], texts[1::2], strict=True))
