"""What one process has: a session a pool, a line a loop, and what happens to them at a fork and at the exit."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import threading
from contextlib import suppress
from typing import Any

from gpulockd.client import blocking, finding
from gpulockd.client.keeper import Keeper
from gpulockd.client.line import Line
from gpulockd.client.session import Session
from gpulockd.client.variables import Variables
from gpulockd.client.whoami import boot_id
from gpulockd.client.wishes import queue_block, session_block, settle_block
from gpulockd.ledger.store import Store
from gpulockd.ledger.verbs import Terms

DEFAULT_POOL = "default"
FINDING_VARIABLES = Variables("GPULOCKD_REDIS_URL", "GPULOCKD_SOCKET", "GPULOCKD_POOL", "XDG_RUNTIME_DIR")


class _Belongings:
    """All that this process has; a forked child starts with none."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.mutex = threading.Lock()
        self.sessions: dict[tuple[str, str], Session] = {}
        self.keepers: dict[Session, Keeper] = {}
        self.lines: dict[tuple[Session, asyncio.AbstractEventLoop], Line] = {}
        self.found: dict[tuple[str | bytes | None, ...], Session] = {}


_mine: _Belongings | None = None
_parked: list[Any] = []
_mutex = threading.Lock()


def belongings() -> _Belongings:
    """What this process has; made at first use."""
    global _mine
    if _mine is None:
        with _mutex:
            if _mine is None:
                _mine = _Belongings()
                _watch_process()
    return _mine


_watched = False


def _watch_process() -> None:
    global _watched
    if not _watched:
        _watched = True
        os.register_at_fork(after_in_child=_after_fork)
        atexit.register(say_goodbye)


def _after_fork() -> None:
    """In a forked child nothing inherited is closed by its library, finalised or sent.

    The parent's sockets are shared with it: a shutdown or a TLS goodbye here would end the parent's connections, and a
    finaliser would touch its epoll set. So references are parked for ever and only the descriptors are closed.
    """
    global _mine, _mutex
    inherited, _mine, _mutex = _mine, None, threading.Lock()
    if inherited is None:
        return
    blocking.forget_after_fork()
    _parked.append(inherited)
    gc.freeze()
    # An inherited descriptor would keep the parent's subscription open after the parent has died.
    lines, keepers = inherited.lines.values(), inherited.keepers.values()
    for descriptor in [d for line in lines for d in line.descriptors()] + [
        d for keeper in keepers for d in keeper.descriptors()
    ]:
        with suppress(OSError):
            os.close(descriptor)


def say_goodbye() -> None:
    """End the sessions of this process, so that the next holder need not wait for their end: at exit, or in tests."""
    global _mine
    mine, _mine = _mine, None
    if mine is None or mine.pid != os.getpid():
        return
    for session, keeper in mine.keepers.items():
        for entry in session.table.held():
            entry.lose("this process has said goodbye")
        if keeper.started:
            keeper.stop()
    # Other loops, the portal's too, go on; what hears there would wait for ever for an echo of the ended sessions.
    for line in list(mine.lines.values()):
        line.hang_up()


async def line_of(session: Session) -> Line:
    """The line of the running loop for `session`, ready to use."""
    mine, loop = belongings(), asyncio.get_running_loop()
    line = mine.lines.get((session, loop))
    if line is None:
        with mine.mutex:
            for key in [key for key in mine.lines if key[1].is_closed()]:
                del mine.lines[key]
            line = mine.lines.setdefault((session, loop), Line(session, mine.keepers[session]))
    await line.ready()
    return line


async def line_for(pool: str | None) -> Line:
    """The line of the running loop for a pool, found as the environment and the local daemon say.

    :raises StoreUnavailable: if no store is known, or it does not answer
    :raises ConfigError: if it may not be used
    """
    mine = belongings()
    said = (pool, *FINDING_VARIABLES.raw())
    session = mine.found.get(said)
    if session is None:
        session = mine.found[said] = await _find_session(mine, pool)
    return await line_of(session)


def known_session(pool: str | None) -> Session | None:
    """The session that was found for a pool as the environment now says, if one was."""
    said = (pool, *FINDING_VARIABLES.raw())
    return belongings().found.get(said)


async def _find_session(mine: _Belongings, pool: str | None) -> Session:
    found = finding.find_store(pool)
    name = found.pool or await _pool_by_store(found.url)
    times = session_block()
    terms = Terms.of(times, queue_block(), settle_block())
    with mine.mutex:
        session = mine.sessions.get((found.url, name))
        if session is None:
            session = Session(found.url, name, times, terms, socket=found.socket)
            mine.sessions[(found.url, name)] = session
            mine.keepers[session] = Keeper(session)
    return session


async def _pool_by_store(url: str) -> str:
    """The pool that the store names for this host's boot, else the default one."""
    store = Store(url, deadline_s=session_block().rpc_deadline)
    try:
        return await store.pool_of_host(boot_id()) or DEFAULT_POOL
    finally:
        await store.aclose()
