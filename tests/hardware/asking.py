"""A child process that has the real bindings load our library, and answers questions about its cards on a line each.

Run as a program it is that child; `asked(stub)` starts it. Questions run side by side, as in the daemon.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec

from gpulockd.errors import GpuLockError
from gpulockd.hardware.nvml import NvmlCards
from gpulockd.hardware.readings import CardTrouble

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 30.0


class Asker:
    """The parent's side: `await asker("read", uuid)`; a refusal of ours is a dict with `error`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.troubles: list[dict[str, Any]] = []
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def __call__(self, verb: str, *words: str) -> Any:
        """Ask, and return the answer."""
        return await asyncio.wait_for(self.begin(verb, *words), WITHIN_S)

    def begin(self, verb: str, *words: str) -> asyncio.Future[Any]:
        """Ask, and return the answer that will come."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([number, verb, *words]).encode() + b"\n")
        return self._answers[number]

    async def listen(self) -> None:
        """Take the child's lines until it ends."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            number, said = json.loads(line)
            if number is None:
                self.troubles.append(said)
            else:
                self._answers[number].set_result(said)

    async def ends(self) -> int:
        """Let it end by itself, and return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), WITHIN_S)


@asynccontextmanager
async def asked(env: dict[str, str], deadline_s: float = 20.0) -> AsyncIterator[Asker]:
    """Start a child with this environment; kill it afterwards.

    :param deadline_s: of its questions (in seconds)
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.hardware.asking",
        str(deadline_s),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | env,
    )
    asker = Asker(child)
    listening = asyncio.create_task(asker.listen())
    try:
        yield asker
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        await listening


async def answer(cards: NvmlCards, verb: str, words: list[str]) -> Any:
    """Return what the cards say, as plain values."""
    try:
        if verb == "list":
            return msgspec.to_builtins(await cards.list())
        if verb == "read":
            return msgspec.to_builtins(await cards.read(words[0]))
        if verb == "processes":
            return msgspec.to_builtins(await cards.processes(words[0]))
        if verb == "reopen":
            return await cards.reopen()
    except GpuLockError as refused:
        return {"error": type(refused).__name__, "message": refused.message, "code": vars(refused).get("code")}
    return cards.describe()


async def main(deadline_s: float) -> None:
    """Answer until the input ends."""
    cards = NvmlCards(deadline_s=deadline_s, card_deadline_s=deadline_s)
    lines: asyncio.StreamReader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    def tell(trouble: CardTrouble) -> None:
        print(json.dumps([None, msgspec.to_builtins(trouble)]), flush=True)

    async def serve(number: int, verb: str, *words: str) -> None:
        print(json.dumps([number, await answer(cards, verb, list(words))]), flush=True)

    async with anyio.create_task_group() as tasks:
        while line := await lines.readline():
            number, verb, *words = json.loads(line)
            if verb == "watch":
                await tasks.start(cards.watch, tell)
                print(json.dumps([number, None]), flush=True)
            else:
                tasks.start_soon(serve, number, verb, *words)
        tasks.cancel_scope.cancel()
    cards.close()


if __name__ == "__main__":
    anyio.run(main, float(sys.argv[1]))
