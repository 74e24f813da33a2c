"""The way of a drill's programs to their store, which can be cut and mended."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

CHUNK = 1 << 16


class Wire:
    """Forwards between the socket `path` and a store's. While it is cut, whoever comes is taken and never answered."""

    def __init__(self, store: str, path: str) -> None:
        self.path = path
        self._store = store
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Wire {self.path}{'' if self._whole.is_set() else ' cut'}>"

    async def listen(self) -> None:
        """Begin to forward."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    def cut(self) -> None:
        """Break all connections, and answer none until `mend`."""
        self._whole.clear()
        for writer in list(self._open):
            writer.transport.abort()

    def mend(self) -> None:
        """Forward again; who was taken meanwhile is broken off, as a network does that comes back."""
        self._whole.set()

    async def aclose(self) -> None:
        """Cut all connections and stop."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if not self._whole.is_set():
                await self._whole.wait()
                return
            from_store, to_store = await asyncio.open_unix_connection(self._store)
            self._open |= {to_client, to_store}
            try:
                ways = [
                    asyncio.ensure_future(_pass(from_client, to_store)),
                    asyncio.ensure_future(_pass(from_store, to_client)),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._open -= {to_client, to_store}
                to_store.close()
        except (OSError, asyncio.CancelledError):
            return  # the other side has gone, or the drill is over
        finally:
            to_client.close()
            self._tasks.discard(task)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
