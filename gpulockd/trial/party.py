"""A program of a trial: a child process that is told lines and says lines of JSON."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from gpulockd.errors import GpuLockError

SAYS_WITHIN_S = 60.0
ENDS_WITHIN_S = 5.0
LONGEST_LINE = 1 << 24


class PartyLost(GpuLockError):
    """A program of a trial has ended or says nothing any more."""


class Party:
    """A running program. It ends when its standard input does."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def __repr__(self) -> str:
        return f"<Party pid={self._process.pid}>"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    @classmethod
    async def start(cls, command: list[str], env: dict[str, str], *, before: Callable[[], None] | None = None) -> Party:
        """Start a program. `before` runs in the child, before it becomes that program."""
        return cls(
            await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=env,
                limit=LONGEST_LINE,
                start_new_session=True,
                preexec_fn=before,
            )
        )

    async def tell(self, words: object) -> None:
        """Tell it one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(words) + b"\n")
        await self._process.stdin.drain()

    async def said(self, within_s: float = SAYS_WITHIN_S) -> Any:
        """The next line that it says.

        :raises PartyLost: if it has ended, or says nothing for so long
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise PartyLost(f"a program of the trial said nothing for {within_s:g} s") from None
        if not line:
            raise PartyLost("a program of the trial has ended; what it wrote above says why")
        return msgspec.json.decode(line)

    def kill(self) -> None:
        """End it at once; a stopped one too."""
        if self.is_running:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> None:
        """End it: kindly, then at once."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDS_WITHIN_S):
                await self._process.wait()
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
