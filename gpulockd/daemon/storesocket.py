"""The few commands that the daemon asks its own store, over the store's unix socket."""

from __future__ import annotations

import os
import socket
from typing import Any, Literal

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

ANSWER_DEADLINE_S = 2.0

Answer = Literal["absent", "silent", "loading", "ready"]


class StoreSocket:
    """The store behind the unix socket `path`; errors are redis-py's."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def state(self) -> Answer:
        """Return what the socket answers to PING: nobody there, no answer, loading its file, or ready."""
        try:
            await self.ask("PING")
        except BusyLoadingError:
            return "loading"
        except RedisConnectionError:
            return "absent"
        except RedisError:
            return "silent"
        return "ready"

    async def info(self) -> dict[str, Any]:
        """Return all that INFO says."""
        answer: dict[str, Any] = await self.ask("INFO", "everything")
        return answer

    async def folder(self) -> str:
        """Return the folder that the store writes its file in, without symbolic links."""
        answer = await self.ask("CONFIG", "GET", "dir")
        return os.fsdecode(next(iter(answer.values())) if isinstance(answer, dict) else answer[1])

    async def ask(self, *command: str) -> Any:
        """Send one command on a connection of its own, within 2 s and without hidden retries."""
        client = Redis(
            unix_socket_path=self.path,
            socket_timeout=ANSWER_DEADLINE_S,
            retry=Retry(NoBackoff(), 0),
            single_connection_client=True,
        )
        try:
            return await client.execute_command(*command)
        finally:
            await client.aclose()

    def server_pid(self) -> int:
        """Return the server's pid as this process sees it; 0 = it is in another PID namespace."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_DEADLINE_S)
            connection.connect(self.path)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little", signed=True)
