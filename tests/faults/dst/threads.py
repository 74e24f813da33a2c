"""What the client finds in the place of threads, blocking sockets, clocks and chance while a schedule is played."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import redis
import redis.connection
import redis.utils
from redis._parsers import hiredis as parser

from gpulockd import clock
from gpulockd.client import blocking, keeper, nesting, session, using
from gpulockd.model import Process as Identity
from tests.faults.dst.loop import Loop
from tests.faults.dst.network import Connection, Network
from tests.faults.dst.store import BEGINS_AT_S
from tests.faults.dst.world import Process, Thread, World, this_thread

WAITS_S = 0.001


class Event:
    """As `threading.Event`."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Thread] = []

    def set(self) -> None:
        """Wake all that wait."""
        self._is_set = True
        for thread in self._waiting:
            thread.wake()

    def clear(self) -> None:
        """Forget it."""
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or so long (in seconds)."""
        me = this_thread()
        until_s = me.within(timeout)
        self._waiting.append(me)
        try:
            while not self._is_set and (until_s is None or me.process.world.now < until_s):
                me.pause(until_s)
        finally:
            self._waiting.remove(me)
        return self._is_set


class Lock:
    """As a `threading.Lock` of a module's, of which each process has its own."""

    def __init__(self) -> None:
        self._holders: dict[Process, Thread] = {}

    def __enter__(self) -> None:
        me = this_thread()
        while me.process in self._holders:
            me.pause(me.process.world.now + WAITS_S)
        self._holders[me.process] = me

    def __exit__(self, *error: object) -> None:
        del self._holders[this_thread().process]


class Queue:
    """As `queue.SimpleQueue`."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: list[Thread] = []

    @classmethod
    def __class_getitem__(cls, kind: object) -> type[Queue]:
        return cls

    def put(self, item: Any) -> None:
        """Wake who waits for it."""
        self._items.append(item)
        for thread in self._waiting:
            thread.wake()

    def get(self) -> Any:
        """Wait for an item."""
        me = this_thread()
        self._waiting.append(me)
        try:
            while not self._items:
                me.pause()
            return self._items.popleft()
        finally:
            self._waiting.remove(me)


class Started:
    """As `threading.Thread`; it belongs to the process whose code starts it."""

    def __init__(self, target: Callable[[], None], name: str = "", daemon: bool = False) -> None:
        self._target = target
        self._thread: Thread | None = None

    @property
    def ident(self) -> int | None:
        """None until it is started."""
        return None if self._thread is None else id(self._thread)

    def start(self) -> None:
        """Begin."""
        self._thread = Thread(this_thread().process, self._target)
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._thread is not None and not self._thread.ended

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, or so long (in seconds)."""
        assert self._thread is not None
        self._thread.join(timeout)


class Socket:
    """As a blocking `socket.socket`, for redis-py."""

    network: Network

    def __init__(self, *kind: Any) -> None:
        self._timeout: float | None = None
        self._connection: Connection | None = None
        self._refused: OSError | None = None
        self._stands = False

    def settimeout(self, seconds: float | None) -> None:
        """How long each call may wait (in seconds)."""
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        """How long each call may wait (in seconds)."""
        return self._timeout

    def setsockopt(self, *option: Any) -> None:
        """It has no options."""

    def connect(self, address: tuple[str, int]) -> None:
        """Connect to the store."""
        me = this_thread()

        def told(why: OSError | None) -> None:
            self._stands, self._refused = why is None, why
            me.wake()

        self._connection = self.network.dial(me.process, told)
        self._connection.on_news = me.wake
        self._wait(lambda: self._stands or self._refused is not None)
        if self._refused is not None:
            raise self._refused

    def sendall(self, data: bytes) -> None:
        """Send."""
        assert self._connection is not None
        if self._connection.is_over:
            raise BrokenPipeError(32, "Broken pipe")
        self._connection.send(bytes(data))

    def recv_into(self, buffer: bytearray) -> int:
        """Read what has come, or wait for it."""
        connection = self._connection
        assert connection is not None
        self._wait(lambda: connection.has_news)
        if not connection.heard and connection.why is not None:
            raise connection.why
        said = connection.take(len(buffer))
        buffer[: len(said)] = said
        return len(said)

    def can_be_read(self) -> bool:
        """Whether there is something to read."""
        return self._connection is not None and self._connection.has_news

    def shutdown(self, how: int) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End it."""
        if self._connection is not None:
            self._connection.close()

    def fileno(self) -> int:
        """It has no descriptor."""
        return -1

    def _wait(self, done: Callable[[], bool]) -> None:
        me = this_thread()
        until_s = me.within(self._timeout)
        while not done():
            if until_s is not None and me.process.world.now >= until_s:
                raise TimeoutError("timed out")
            me.pause(until_s)


def _ident() -> int:
    """As `threading.get_ident`."""
    return id(this_thread())


def _addresses(host: str, port: int, *kind: Any) -> list[tuple[Any, ...]]:
    """The one address of the store."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]


class Instead:
    """A module with some names replaced."""

    def __init__(self, module: Any, **instead: Any) -> None:
        self._module = module
        vars(self).update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextlib.contextmanager
def replaced(where: Any, name: str, instead: Any) -> Iterator[None]:
    """Put something else in the place of a name for a while."""
    before = getattr(where, name)
    setattr(where, name, instead)
    try:
        yield
    finally:
        setattr(where, name, before)


@contextlib.contextmanager
def in_virtual_time(world: World, network: Network) -> Iterator[None]:
    """Let the client of this interpreter live in `world` for a while."""

    def boottime_s(which: int) -> float:
        return world.acting.clock() if world.acting is not None else world.now

    def identity() -> Identity:
        process = world.acting
        assert process is not None
        return Identity(
            pid=process.pid, host="host", boot_id="boot", user="user", program="program", started_ticks=process.pid
        )

    def run_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        Loop(this_thread(), network).run(main())

    class Dialled(Socket):
        pass

    Dialled.network = network
    times = Instead(time, clock_gettime=boottime_s, time_ns=lambda: round((BEGINS_AT_S + world.now) * 1e9))
    before, hooks = random.getstate(), sys.get_asyncgen_hooks()
    random.seed(world.dice.random())
    chance = random.Random(world.dice.random())
    with contextlib.ExitStack() as stack:
        for where, name, instead in (
            (clock, "time", times),
            (keeper, "threading", Instead(threading, Event=Event, Thread=Started)),
            (blocking, "threading", Instead(threading, Thread=Started)),
            (blocking, "_mutex", Lock()),
            (blocking, "SimpleQueue", Queue),
            (blocking, "anyio", Instead(anyio, run=run_loop)),
            (nesting, "threading", Instead(threading, get_ident=_ident)),
            (using, "threading", Instead(threading, get_ident=_ident)),
            (session, "this_process", identity),
            (os, "urandom", chance.randbytes),
            (redis.connection, "socket", Instead(socket, socket=Dialled, getaddrinfo=_addresses)),
            (redis.utils, "get_lib_version", lambda: redis.__version__),  # it would read files at each connection
            (parser, "_socket_can_read", lambda sock, timeout: sock.can_be_read()),
            (parser, "_socket_is_closed", lambda sock: not sock._connection.heard),
        ):
            stack.enter_context(replaced(where, name, instead))
        try:
            yield
        finally:
            random.setstate(before)
            sys.set_asyncgen_hooks(*hooks)
