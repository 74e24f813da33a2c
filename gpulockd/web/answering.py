"""Sends the head of an answer in one piece with the first part of its body: one packet, and one wake-up of its reader.

uvicorn writes them one after the other, and to write a few bytes costs as much as all the rest of a short answer.
"""

from __future__ import annotations

import asyncio


class HeadWithBody(asyncio.Transport):
    """A connection's transport for one answer. A head that nothing follows goes out when the loop turns."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep the first bytes for a moment; all others go out at once, behind them."""
        if not self._begun:
            self._begun = True
            self._head = bytes(data)
            self._loop.call_soon(self._flush)
        elif self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head + data)
        else:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing that is written now will arrive."""
        return self._transport.is_closing()

    def close(self) -> None:
        """End the connection once everything has gone out."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)
