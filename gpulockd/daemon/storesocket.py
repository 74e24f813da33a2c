"""The few commands that the daemon asks its own store, over the store's unix socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Literal

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from gpulockd.clock import boottime_s
from gpulockd.ledger.wire.commands import WireCommands
from gpulockd.ledger.wire.trouble import Refused

ANSWER_DEADLINE_S = 2.0
READY_DEADLINE_S = 10.0
LOADING_DEADLINE_S = 120.0
POLL_S = 0.01

Answer = Literal["absent", "silent", "loading", "ready"]


class StoreSocket:
    """The store behind the unix socket `path`; errors are redis-py's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._commands: WireCommands | None = None

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

    async def wait_ready(self, ended: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the store answers; return False if `ended()` first. While it loads its file it has 120 s.

        :raises TimeoutError: saying how long there was which answer
        """
        began_s = boottime_s()
        while (state := await self.state()) != "ready":
            if ended():
                return False
            allowed_s = LOADING_DEADLINE_S if state == "loading" else READY_DEADLINE_S
            if boottime_s() - began_s > allowed_s:
                raise TimeoutError(f"no answer for {allowed_s:g} s ({state})")
            await anyio.sleep(POLL_S)
        return True

    async def info(self) -> dict[str, Any]:
        """Return all that INFO says."""
        answer: dict[str, Any] = await self.ask("INFO", "everything")
        return answer

    async def persistence(self) -> dict[str, Any]:
        """Return what INFO says of the store's file, as text, on a connection that is kept."""
        if self._commands is None:
            self._commands = WireCommands(f"unix://{self.path}", deadline_s=ANSWER_DEADLINE_S, name="gpulockd-store")
        try:
            return await self._commands.info("persistence")
        except (OSError, Refused) as trouble:
            raise RedisConnectionError(str(trouble)) from trouble

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


def pid_behind(path: str) -> int:
    """Return the pid of the store that listens on the unix socket `path`; 0 if none does."""
    try:
        return max(0, StoreSocket(path).server_pid())
    except OSError:
        return 0
