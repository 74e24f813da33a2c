"""A guard of tomorrow: `python -m tests.faults.newer FOLDER SOCKET` listens in FOLDER and passes on to the guard at
SOCKET, with words in both directions that nobody knows today. It is a process of its own: whoever speaks through it is
it, as far as the kernel says.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

TOMORROW: dict[str, Any] = {
    "protocol": 99,
    "since": "2.0",
    "foretold": {"deep": [1, None, {"deeper": "x" * 200}], "token": -1, "lost": "nobody"},
    "kinds": ["dreamed", 7],
}
"""What a later version may say besides."""

NEWS: tuple[Any, ...] = (
    {"dreamed": "gpu_lock:0", "token": 1},
    {"alive": True, "until": 1.5},
    {"stopping": {"soon": True}},
    [],
    "well",
    None,
)
"""Lines that no version of today sends by itself. The first line is the answer to `hello`, always."""


def grown(said: Any) -> Any:
    """The same, in the words of tomorrow."""
    if isinstance(said, dict):
        return {name: grown(value) for name, value in said.items()} | TOMORROW
    if isinstance(said, list):
        return [grown(value) if isinstance(value, dict) else value for value in said]
    return said


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, news: bool) -> None:
    while line := await reader.readline():
        said = grown(json.loads(line))
        lines = [said, *NEWS] if news and "alive" not in json.loads(line) else [said]
        writer.write(b"".join(json.dumps(one).encode() + b"\n" for one in lines))
        await writer.drain()
    writer.close()


async def serve(folder: Path, target: str) -> None:
    """Pass on until killed."""

    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard, said = await asyncio.open_unix_connection(target)
        await asyncio.gather(_forward(reader, said, news=False), _forward(heard, writer, news=True))

    async with await asyncio.start_unix_server(passed_on, str(folder / "guard.sock")) as server:
        (folder / "ready").touch()
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
