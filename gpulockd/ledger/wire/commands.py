"""Commands of one event loop to one server: over one connection, opened at first use and again when it has broken."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from gpulockd.ledger.wire import opening
from gpulockd.ledger.wire.connection import Wire
from gpulockd.ledger.wire.trouble import Broken, Late


class Commands(Protocol):
    """What the store needs of a server, or of many. Every method ends within the deadline and repeats nothing."""

    def begin(self, words: tuple[Any, ...]) -> asyncio.Future[Any] | None:
        """Send a command now and return its reply to come; None where that takes more than a write."""

    async def run(self, words: tuple[Any, ...]) -> Any:
        """Send a command and return its reply."""

    async def load(self, library: str, words: tuple[Any, ...]) -> None:
        """Give the server to which `words` go a library of functions."""

    async def info(self, section: str) -> dict[str, Any]:
        """What the server says of itself."""

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""

    async def aclose(self) -> None:
        """Close what is open; the next command opens it again."""


class WireCommands:
    """Commands over an own connection. Those of several tasks are under way together."""

    def __init__(self, url: str, *, deadline_s: float, name: str) -> None:
        """:param deadline_s: of each command, connecting included (in seconds)"""
        self._place = opening.place_of(url)
        self._deadline_s = deadline_s
        self._name = name
        self._wire: Wire | None = None
        self._dialled: Wire | None = None
        self._dialling = asyncio.Lock()

    def begin(self, words: tuple[Any, ...]) -> asyncio.Future[Any] | None:
        """Send a command now and return its reply to come; None while nothing is connected."""
        wire = self._wire
        return wire.send(words) if wire is not None and wire.why is None else None

    async def run(self, words: tuple[Any, ...], *, asking: bool = False) -> Any:
        """Send a command and return its reply.

        :param asking: for keys that are just being moved to this server of a cluster
        :raises Refused: if the server answered with an error
        :raises OSError: if it cannot be reached, or the connection broke before the reply came
        """
        begun = self.begin(words) if not asking else None
        if begun is not None:
            return await begun
        wire: Wire | None = None
        try:
            async with asyncio.timeout(self._deadline_s):
                wire = await self._connected()
                if asking:
                    wire.send(("ASKING",))  # counts for the very next command of this connection
                return await wire.send(words)
        except TimeoutError:
            late = Late(f"gave no answer within {self._deadline_s:g} s")
            if wire is not None:
                wire.abort(late)
            raise late from None

    async def load(self, library: str, words: tuple[Any, ...]) -> None:
        """Give the server a library of functions."""
        await self.run(("FUNCTION", "LOAD", "REPLACE", library))

    async def info(self, section: str) -> dict[str, Any]:
        """What the server says of itself, as text."""
        return read_info(await self.run(("INFO", section)))

    def descriptors(self) -> list[int]:
        """The descriptors of its open sockets."""
        wires = {wire for wire in (self._wire, self._dialled) if wire is not None}
        return [descriptor for wire in wires for descriptor in wire.descriptors()]

    async def aclose(self) -> None:
        """Close the connection; the next command opens another."""
        wire, self._wire = self._wire, None
        if self._dialled is not None:
            self._dialled.abort()
        if wire is not None:
            await wire.aclose()

    async def _connected(self) -> Wire:
        async with self._dialling:
            if self._wire is not None and self._wire.why is None:
                return self._wire
            wire = self._dialled = Wire(self._deadline_s)
            try:
                await opening.dial(wire, self._place, self._name)
                self._wire = wire
            except BaseException:
                wire.abort(Broken("the connection was not completed"))
                raise
            finally:
                self._dialled = None
            return wire


def read_info(said: bytes) -> dict[str, Any]:
    """What a server says of itself, as text."""
    rows = (row.partition(":") for row in said.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in rows if colon}
