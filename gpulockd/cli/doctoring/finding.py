"""One line of the doctor: what was looked at, how it is, and the remedy if it is not well."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check has found; `remedy` says what to do, empty where nothing is."""

    check: str
    level: Level
    what: str
    remedy: str = ""


def ok(check: str, what: str) -> Finding:
    """It is well."""
    return Finding(check, "ok", what)


def warn(check: str, what: str, remedy: str) -> Finding:
    """It works, but not as it should."""
    return Finding(check, "warn", what, remedy)


def fail(check: str, what: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(check, "fail", what, remedy)


@dataclass
class Host:
    """What is known of the daemon of this host; later checks read what earlier ones have found.

    :param folder: the runtime folder, None if there is none
    :param hello: what the guard says of the daemon, empty if it does not answer
    :param pid: the daemon's, None where it cannot be known
    :param uuids: of the cards that it offers
    """

    folder: str | None = None
    socket: str | None = None
    hello: dict[str, object] = field(default_factory=dict)
    pid: int | None = None
    uuids: tuple[str, ...] = ()

    @property
    def pool(self) -> str | None:
        """The pool of the environment, else the daemon's."""
        named = os.environ.get("GPULOCKD_POOL") or self.hello.get("pool")
        return str(named) if named else None
