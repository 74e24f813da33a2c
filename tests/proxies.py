"""A small proxy between a client and a server that loses replies on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.servers import Server


class Proxy:
    """Forwards bytes over a unix socket. Replies to scripts are counted over all connections; number `lose` is not
    delivered and its connection is cut, as by a network that fails just then. 0 loses none. `swallow` counts what is
    sent to scripts: that one does not arrive, nor does anything after it on its connection. Every reply whose number
    `tear` divides arrives half, and its connection is reset."""

    def __init__(self, server: Server, path: Path, *, lose: int = 0) -> None:
        self.url = f"unix://{path}"
        self.lose = lose
        self.swallow = 0
        self.tear = 0
        self.requests = 0
        self.replies = 0
        self.lost = 0
        self.refusing = False
        self.trickle_s = 0.0
        self.delay_s = 0.0
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Forward one connection until either side closes it."""
        if self.refusing:
            client.close()
            return
        self._writers.add(client)  # from now on: the proxy may end while it dials
        try:
            server_reader, server = await asyncio.open_unix_connection(str(self._server.socket_path))
        except OSError:
            self._writers.discard(client)
            client.close()
            return
        self._writers.add(server)
        scripts: list[bool] = []
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._forward(client_reader, server, scripts, counts=False))
                both.create_task(self._forward(server_reader, client, scripts, counts=True))
        except* (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for writer in (client, server):
                self._writers.discard(writer)
                writer.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scripts: list[bool], *, counts: bool
    ) -> None:
        while data := await reader.read(1 << 20):
            if not counts and b"FCALL" in data:
                scripts.append(True)
                self.requests += 1
                if self.requests == self.swallow:
                    self.lost += 1
                    while await reader.read(1 << 20):
                        continue
                    break
            if counts and scripts:
                scripts.clear()
                self.replies += 1
                if self.replies == self.lose:
                    self.lost += 1
                    raise ConnectionResetError
                if self.tear and self.replies % self.tear == 0:
                    self.lost += 1
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    writer.transport.abort()
                    raise ConnectionResetError
            if counts and self.delay_s:
                await asyncio.sleep(self.delay_s)
            if counts and self.trickle_s:
                for byte in data:
                    writer.write(bytes((byte,)))
                    await writer.drain()
                    await asyncio.sleep(self.trickle_s)
                continue
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    @property
    def is_busy(self) -> bool:
        """Whether a connection is still open."""
        return bool(self._writers)

    def cut(self) -> None:
        """Cut every connection."""
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def proxied(server: Server, *, lose: int = 0) -> AsyncIterator[Proxy]:
    """Run a proxy in front of `server`."""
    with tempfile.TemporaryDirectory(prefix="gl", dir="/tmp") as folder:
        path = Path(folder) / "p.sock"
        proxy = Proxy(server, path, lose=lose)
        listener = await asyncio.start_unix_server(proxy.serve, str(path))
        try:
            yield proxy
        finally:
            listener.close()
            proxy.refusing = True
            for _ in range(1000):  # what was just accepted is still dialling
                proxy.cut()
                await asyncio.sleep(0.002)
                if not proxy.is_busy:
                    break
