"""A way to a store on which no notification comes through, as behind a network that lost them: programs must poll."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

CHUNK = 1 << 16
LISTENS = b"SUBSCRIBE"
"""What only a connection sends that wants notifications."""


class Deaf:
    """Forwards between the socket `path` and a store's. After `cut` it swallows what would subscribe."""

    def __init__(self, store: str, path: str) -> None:
        self.path = path
        self.is_cut = False
        self._store = store
        self._server: asyncio.Server | None = None
        self._ears: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Deaf {self.path}{' cut' if self.is_cut else ''}>"

    async def listen(self) -> None:
        """Begin to forward."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    def cut(self) -> None:
        """Break every subscription, and let none be made: whoever tries gets no answer."""
        self.is_cut = True
        for ear in self._ears:
            ear.transport.abort()

    async def aclose(self) -> None:
        """Cut all connections and stop."""
        if self._server is None:
            return
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
            from_store, to_store = await asyncio.open_unix_connection(self._store)
            try:
                await self._forward_both(from_client, to_client, from_store, to_store)
            finally:
                to_store.close()
        except (OSError, asyncio.CancelledError):
            return  # the other side has gone, or the trial is over
        finally:
            self._ears.discard(to_client)
            to_client.close()
            self._tasks.discard(task)

    async def _forward_both(
        self,
        from_client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        from_store: asyncio.StreamReader,
        to_store: asyncio.StreamWriter,
    ) -> None:
        async def asked() -> None:
            while data := await from_client.read(CHUNK):
                if LISTENS in data:
                    self._ears.add(to_client)
                    if self.is_cut:
                        continue
                to_store.write(data)
                await to_store.drain()

        async def answered() -> None:
            while data := await from_store.read(CHUNK):
                to_client.write(data)
                await to_client.drain()

        ways = [asyncio.ensure_future(asked()), asyncio.ensure_future(answered())]
        try:
            # When one side has gone, the other is let go too.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
